"""What is shown while a program runs: in a notebook, in a terminal, and in a log file."""

import sys

from tqdm import tqdm


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this, so that HTML and widgets can be shown."""
    return "IPython" in sys.modules and hasattr(sys.modules["IPython"].get_ipython(), "kernel")


def request() -> str | None:
    """What tells the cell that a notebook runs now, or the press of a widget's button, from any other; None outside a notebook."""
    return sys.modules["IPython"].get_ipython().parent_header["header"]["msg_id"] if in_notebook() else None


def show(plain: str, formats: dict[str, object]) -> None:
    """Show a text in other formats, by MIME type, of which each front end and each export takes one; elsewhere the text is printed."""
    if not in_notebook():
        return print(plain)
    from IPython.display import display

    display({**formats, "text/plain": plain}, raw=True)


def progress_bar(total: int, name: str, unit: str, hidden: bool = False, **options) -> tqdm:
    """A bar with the remaining time, gone once it is closed, and never in a log file. options: tqdm's."""
    # in a notebook among what is printed, where the next line covers it; stderr leaves a coloured gap
    stream = sys.stdout if type(sys.stdout).__module__.startswith("ipykernel.") else sys.stderr
    if hidden or stream is sys.stderr and not stream.isatty():
        options["disable"] = True  # not False, which would overrule TQDM_DISABLE
    return tqdm(total=total, desc=name, unit=unit, leave=False, file=stream, **options)


def memory(size: int | None) -> str:
    """Bytes as text: '512 MB', '1.3 GB'."""
    return "an unknown amount" if size is None else f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def duration(seconds: float) -> str:
    """Seconds as text: '4.2 s', '3 min 05 s'."""
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
