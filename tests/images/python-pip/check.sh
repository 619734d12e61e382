test "$(command -v python)" = /opt/venv/bin/python
python -m unittest -q
pip list --format=freeze | grep -qx 'attrs==23.2.0'
