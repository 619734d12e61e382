test "$(python tool.py)" = "(3, 13) 23.2.0"
test ! -e /root/.cache/uv/wheels-v5
uv --version
