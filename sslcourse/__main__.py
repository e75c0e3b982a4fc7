"""python -m sslcourse"""

import sys

from sslcourse.course.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
