#include <stdio.h>
#include "count.h"

int main(void) {
    return printf("%d\n", count()) < 0;
}
