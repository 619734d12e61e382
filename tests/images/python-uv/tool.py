import sys

import attrs

print(sys.version_info[:2], attrs.__version__)
