"""The command `handout`: copies of the lessons for a class.

python -m sslcourse handout 1-3 --out class --students class.csv
"""

import argparse

from sslcourse.course.commands import arguments
from sslcourse.errors import CourseError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to an argparse parser."""
    parser.add_argument("lessons", nargs="*", metavar="LESSON", help="numbers (3), ranges (3-5) or names (simclr); all if left out")
    parser.add_argument("--out", required=True, metavar="DIR", help="where the copies go; what is there and not the command's own stays")
    formats = "plain: DIR/student without solutions, DIR/solutions filled in (default); nbgrader: a course folder for nbgrader"
    parser.add_argument("--format", choices=("plain", "nbgrader"), default="plain", help=formats)
    each = parser.add_mutually_exclusive_group()
    students = "a class list, one id a line or a CSV with a column id: a copy and a seed for each, in DIR/student/ID and DIR/seeds.csv"
    each.add_argument("--students", metavar="FILE", help=students)
    seeds = "copies with other seeds, in DIR/student/seed-K; in steps of 10, such as 0 10 20, they share no run"
    each.add_argument("--seeds", type=arguments.listed_seed, nargs="+", metavar="K", help=seeds)
    parser.add_argument("--salt", default="", metavar="TEXT", help="with --students: another text gives everybody another seed")
    without = "leave out the explanations of quiz choices and of diagnosed faults; the copies in DIR/solutions keep them"
    parser.add_argument("--without-quiz-answers", action="store_true", help=without)
    parser.add_argument("--notebooks", metavar="DIR", help="folder of the lessons (default: the course's own)")


def run(args: argparse.Namespace) -> int:
    """Do what the parsed arguments say. -> exit status 0."""
    from sslcourse.course.handouts import class_list, handout

    if args.salt and not args.students:
        raise CourseError("--salt changes the seeds of a class: name the class with --students.")
    students = class_list.read_students(args.students) if args.students else None
    options = {"format": args.format, "students": students, "seeds": args.seeds, "salt": args.salt}
    made = handout.make(args.lessons, args.out, answers=not args.without_quiz_answers, notebooks_dir=args.notebooks, **options)
    print("\n".join([f"{made.files} files written to {args.out}.", *made.notes]))
    if args.format == "nbgrader":
        print(f"What to do with them is in {args.out}/README.md.")
        return 0
    print(f"Without solutions: {args.out}/student. With them: {args.out}/solutions.")
    if made.seeds:
        print(f"{len(made.seeds)} students, who has which seed: {args.out}/seeds.csv.")
    print(f"To see the solutions with their outputs: python -m sslcourse notebooks --execute --notebooks {args.out}/solutions")
    return 0
