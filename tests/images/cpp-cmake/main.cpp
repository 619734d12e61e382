#include <iostream>
#include <string>
#include <vector>

int main(int, char **argv) {
    const auto limit = std::stoul(argv[1]);
    std::vector<bool> composite(limit);
    for (std::size_t n = 2; n < limit; n++) {
        if (composite[n]) continue;
        std::cout << n << ' ';
        for (auto m = n * n; m < limit; m += n) composite[m] = true;
    }
    std::cout << '\n';
}
