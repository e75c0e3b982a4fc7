"""Get a data set ready: `python data_setup.py`, `python data_setup.py stl10`, `python data_setup.py --from photos.zip --name my-photos`."""

import sys

from sslcourse.course.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["data", *sys.argv[1:]]))
