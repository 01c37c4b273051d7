"""Where tables of commands are printed: as wide as the terminal, and in a file as wide as they are."""

from rich.console import Console

WIDTH = 200  # of a file, which is not 80 columns wide


def wide_console(width: int = WIDTH) -> Console:
    """The console of stdout; where that is no terminal, one of a width that breaks no line of a table."""
    console = Console()
    return console if console.is_terminal else Console(width=width)
