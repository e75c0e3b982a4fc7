"""python -m sslcourse"""

import sys

from sslcourse.course.cli import main

if __name__ == "__main__":
    sys.exit(main())
