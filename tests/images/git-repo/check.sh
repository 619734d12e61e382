test "$(git log --oneline feature | wc -l)" = 2
test "$(git branch --show-current)" = main
test -z "$(git status --porcelain)"
git fsck --strict
git merge -q feature && grep -q more one.c
