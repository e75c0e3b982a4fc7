"""The command `handout`: copies of the lessons for a class.

python -m sslcourse handout 1-3 --out class --students class.csv
"""

import argparse
import shutil
from pathlib import Path

from sslcourse.course.commands import arguments
from sslcourse.errors import CourseError
from sslcourse.files import folder_of, write_atomically


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("lessons", nargs="*", metavar="LESSON", help="numbers (3), ranges (3-5) or names (simclr); all if left out")
    parser.add_argument("--out", required=True, metavar="DIR", help="where the copies go: a new folder, or an empty one")
    formats = "plain: DIR/student without solutions, DIR/solutions filled in (default); nbgrader: a course folder for nbgrader"
    parser.add_argument("--format", choices=("plain", "nbgrader"), default="plain", help=formats)
    each = parser.add_mutually_exclusive_group()
    students = "a class list, one id a line or a CSV with a column id: a copy and a seed for each, in DIR/student/ID and DIR/students.csv"
    each.add_argument("--students", metavar="FILE", help=students)
    seeds = "copies with other seeds, in DIR/student/seed-K; in steps of 10, such as 0 10 20, they share no run"
    each.add_argument("--seeds", type=arguments.listed_seed, nargs="+", default=[], metavar="K", help=seeds)
    without = "leave out the explanations of quiz choices and of diagnosed faults; the copies in DIR/solutions keep them"
    parser.add_argument("--without-quiz-answers", action="store_true", help=without)
    parser.add_argument("--notebooks", metavar="DIR", help="folder of the lessons (default: the course's own)")


def run(args: argparse.Namespace) -> int:
    """Write the copies. -> exit status 0. Raises CourseError, and leaves nothing behind, if they cannot be made or written."""
    out = folder_of(args.out, "--out", "class")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise CourseError(f"{args.out} is there already, and not an empty folder. Choose a new one with --out.")
    if args.format == "nbgrader" and args.seeds:
        raise CourseError("nbgrader gives the same notebook to everybody: leave out --seeds, or name the class with --students.")
    contents = _contents(args)
    try:
        for name, content in contents.items():
            write_atomically(out / name, content.encode())
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)  # it was not there, or empty
        raise
    print(f"{len(contents)} files written to {args.out}.")
    if ids := [line.partition(",")[0] for line in contents.get("students.csv", "").splitlines()[1:]]:
        print(f"Students: {len(ids)}, from {ids[0]} to {ids[-1]}.")
    if args.format == "nbgrader":
        print(f"What to do with them is in {args.out}/README.md.")
    else:
        print(f"Without solutions: {args.out}/student. With them: {args.out}/solutions.")
        print(f"To see the solutions with their outputs: python -m sslcourse notebooks --execute --notebooks {args.out}/solutions")
    return 0


def _contents(args: argparse.Namespace) -> dict[str, str]:
    """What to write: path below the folder -> text."""
    import nbformat

    from sslcourse.course import notebook_files, selection
    from sslcourse.course.handouts import class_list, copies, nbgrader

    paths = selection.select(args.lessons, args.notebooks)
    students = class_list.read_students(args.students) if args.students else []
    answers = not args.without_quiz_answers
    contents = {"students.csv": class_list.as_csv(students)} if students else {}
    seeds = {f"student/{student['id']}": student["seed"] for student in students}
    seeds = seeds or {f"student/seed-{seed}": seed for seed in args.seeds} or {"student": None}
    if args.format == "plain":
        start = Path(copies.__file__).with_name("START.md").read_text(encoding="utf-8")
        start = start.format(first=paths[0].name, files=", ".join(path.name for path in paths))
        contents |= {f"{place}/START.md": start for place in seeds}
    for path in paths:
        notebook = notebook_files.load(path)
        if args.format == "nbgrader":
            made = {f"source/lesson_{int(path.name[:2])}": nbgrader.source_copy(notebook, path.name, answers=answers)}
        else:
            made = {place: copies.student_copy(notebook, seed=seed, answers=answers) for place, seed in seeds.items()}
            made["solutions"] = copies.solved_copy(notebook, path.name)
        beside = ["GLOSSARY.md", *(other.name for other in paths if args.format == "plain" or other == path)]
        for place, lesson in made.items():
            for cell in lesson.cells:
                if cell.cell_type == "markdown":
                    cell.source = copies.with_links(cell.source, path.parent, beside)
            contents[f"{place}/{path.name}"] = nbformat.writes(lesson, indent=1, sort_keys=True) + "\n"
            glossary = path.with_name("GLOSSARY.md")
            if glossary.is_file():
                contents[f"{place}/GLOSSARY.md"] = copies.with_links(glossary.read_text(encoding="utf-8"), path.parent, beside)
    if args.format == "nbgrader":
        contents |= {path.name: path.read_text(encoding="utf-8") for path in Path(nbgrader.__file__).with_name("course_folder").glob("*.*")}
    return contents
