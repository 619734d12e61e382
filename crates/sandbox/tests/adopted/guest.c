/* A first process that greets whoever connects, and waits for another connection as long as it was told to. */
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv) {
	int control = -1, listening = -1, orphan = 0;
	for (int i = 1; i < argc; i++) {
		if (!strncmp(argv[i], "--control-fd=", 13)) control = atoi(argv[i] + 13);
		if (!strncmp(argv[i], "--listen-fd=", 12)) listening = atoi(argv[i] + 12);
		if (!strncmp(argv[i], "--orphan-ms=", 12)) orphan = atoi(argv[i] + 12);
	}
	for (;;) {
		char bytes[4096];
		write(control, hello, sizeof hello);
		while (read(control, bytes, sizeof bytes) > 0);
		close(control);
		struct pollfd waits = {listening, POLLIN, 0};
		if (listening < 0 || orphan <= 0 || poll(&waits, 1, orphan) != 1) return 0;
		control = accept(listening, NULL, NULL);
	}
}
