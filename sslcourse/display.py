"""What is shown: in a notebook, or in its place where there is none."""

import sys


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this, so that HTML and widgets can be shown."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel")


def show(plain: str, formats: dict[str, object]) -> None:
    """Show a text in other formats, by MIME type, of which each front end and each export takes one; elsewhere the text is printed."""
    if not in_notebook():
        return print(plain)
    from IPython.display import display

    display({**formats, "text/plain": plain}, raw=True)
