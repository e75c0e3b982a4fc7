"""environment.yml, pyproject.toml, constraints.txt, Makefile and README say the same; nothing carries an address of somebody's machine."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import tables as published_tables
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from sslcourse import results

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
CONSTRAINTS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.strip()]


def dependencies(extras=("lab", "test")):
    names = [*PROJECT["dependencies"], *(r for extra in extras for r in PROJECT["optional-dependencies"][extra])]
    return [Requirement(name) for name in names]


def test_constraints_are_exact_versions_and_every_dependency_has_one_within_its_range():
    for line in CONSTRAINTS:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+_-]+", line), line
    pinned = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in CONSTRAINTS}
    for requirement in dependencies():
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{name} is in pyproject.toml and not in constraints.txt"
        assert requirement.specifier.contains(pinned[name]), f"{name}=={pinned[name]} is outside {requirement.specifier}"


def test_conda_environment_installs_this_project_and_lists_nothing_twice():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    plain = [d for d in environment["dependencies"] if isinstance(d, str)]
    (from_pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    assert {re.split(r"[=<> ]", d)[0] for d in plain} == {"python", "pip"}  # everything else comes from pyproject.toml
    assert "--constraint constraints.txt" in from_pip
    (editable,) = [line for line in from_pip if "--editable" in line]
    extras = set(re.search(r"\[(.*)\]", editable).group(1).split(","))
    assert extras == {"lab", "test"} and extras <= set(PROJECT["optional-dependencies"])
    (python,) = [d.split("=")[1] for d in plain if d.startswith("python")]
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)


def test_make_ci_and_readme_install_the_same_extras_and_name_the_same_targets():
    command = r'--constraint constraints\.txt --editable "\.\[lab,test\]"'
    assert re.search(command, (ROOT / "Makefile").read_text())
    assert re.search(command, (ROOT / "README.md").read_text())
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    readme = set(re.findall(r"\bmake ([a-z]+)", (ROOT / "README.md").read_text()))
    teaching = set(re.findall(r"`make ([a-z-]+)", (ROOT / "notebooks" / "TEACHING.md").read_text()))
    assert {"run", "test", "lab"} <= readme <= targets and teaching and teaching <= targets
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_links_and_pictures_of_the_readme_exist():
    text = (ROOT / "README.md").read_text()
    pictures = re.findall(r'<img src="([^"]+)" alt="[^"]+"', text)
    assert len(pictures) == text.count("<img") == 8  # a thumbnail a lesson, each with its alternative text
    for target in [*pictures, *re.findall(r"\]\((?!https?://)([^)#]+)\)", text)]:
        assert (ROOT / target).exists(), target


def test_the_citation_has_the_version_and_the_address_of_the_project():
    cited = re.search(r"```bibtex\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)[1]
    assert re.search(r"version = \{(.*?)\}", cited)[1] == PROJECT["version"]
    assert re.search(r"url = \{(.*?)\}", cited)[1] == PROJECT["urls"]["Repository"]


def test_published_tables_and_costs_are_those_of_the_committed_records():
    records, long = results.reference(), (ROOT / "docs" / "RESULTS.md").read_text()
    for name in published_tables.FILES:
        text = (ROOT / name).read_text()
        assert published_tables.with_costs(published_tables.with_tables(text, records)) == text, "run python docs/tables.py"
    for table in published_tables.tables(records).values():
        assert long.count(table) == 1


def tracked_texts():
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.exists() and path.suffix in {".py", ".md", ".toml", ".yml", ".txt", ".ipynb", ".json", ""}:
            yield name, path.read_text(encoding="utf-8", errors="replace")


def test_no_file_carries_a_path_of_somebodys_machine():
    # written in pieces, or this file would be the one that is found
    telling = re.compile("|".join(["/" + "root/", "/" + r"home/\w+/", "/" + "work/", r"C:\\" + "Users", "file" + ":///opt"]))
    found = [(name, match.group(0)) for name, text in tracked_texts() for match in [telling.search(text)] if match]
    assert not found


# What each part of the library may import of the others, besides errors, files and display. plots and results know tensors and records.
BELOW = {
    "devices": [], "augment": ["devices"], "losses": ["devices"], "datasets": ["devices"], "loaders": ["devices", "datasets"],
    "models": ["devices", "augment", "losses", "diagnostics"], "diagnostics": ["losses", "devices"],
    "training": ["devices", "augment", "datasets", "loaders", "losses", "models", "diagnostics", "evaluation.features"],
    "evaluation.features": ["devices", "augment", "datasets", "loaders"],
    "evaluation": ["devices", "augment", "datasets", "loaders", "models", "training"], "plots": ["augment"], "results": [],
}  # fmt: skip


def imports_of(path):
    """Modules of the package that a file imports when it is imported itself, without `sslcourse.`; `a.b` for a name b from a."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sslcourse":
            yield from (f"{node.module}.{alias.name}".removeprefix("sslcourse.") for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("sslcourse.") for alias in node.names if alias.name.startswith("sslcourse."))


def test_imports_of_the_library_go_one_way():
    package = ROOT / "sslcourse"
    for path in sorted(package.rglob("*.py")):
        part = path.relative_to(package).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
        if part.split(".")[0] in ("course", "errors", "files", "display", "__main__", "__init__"):
            continue
        own = part.split(".")[0]
        allowed = BELOW[part if part in BELOW else own] + [own, "errors", "files", "display", "__version__"]
        wrong = [name for name in imports_of(path) if not any(name == a or name.startswith(a + ".") for a in allowed)]
        assert not wrong, f"{part} imports {', '.join(wrong)}"


LESSON_8 = {  # what only the eighth lesson needs, which came after the sizes were set
    "transformers.py", "masked.py", "distillation.py", "backbones.py", "lesson_8.py", "answers_to_lesson_8.py", "test_transformers.py",
    "test_masked_and_distilled.py",
}  # fmt: skip


def lines_of(folder, without=None):
    files = [p for p in (ROOT / folder).rglob("*.py") if (without is None or ROOT / without not in p.parents) and p.name not in LESSON_8]
    return sum(p.read_text().count("\n") for p in files)


def test_the_package_grows_no_further():
    """Seven lessons were to need 6,200, 5,000 and 12,500 lines: where there are more, these numbers may only fall."""
    assert lines_of("sslcourse", without="sslcourse/course") <= 6_844
    assert lines_of("sslcourse/course") <= 5_030
    assert lines_of("tests") <= 12_560
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160
