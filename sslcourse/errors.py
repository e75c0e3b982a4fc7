"""The one exception that is meant to be read by a person."""


class CourseError(Exception):
    """Something that the user can put right. The message is a plain sentence: it names the input and the way out.

    The command line prints it without a traceback. Wrong arguments to a library function raise ValueError or TypeError instead.
    """

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows of it."""
        return [str(self)]
