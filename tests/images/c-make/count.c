#include <ctype.h>
#include <stdio.h>
#include "count.h"

int count(void) {
    int words = 0, inside = 0;
    for (int c = getchar(); c != EOF; c = getchar()) {
        words += !isspace(c) && !inside;
        inside = !isspace(c);
    }
    return words;
}
