"""A figure for a dark page: black ink becomes light, white ground dark, greys between; colours and images stay."""

from typing import Any

INK, GROUND = (0.894, 0.902, 0.914), (0.086, 0.094, 0.106)  # of `page.html.jinja` in dark mode
STROKE = 2  # px of an outline
GREY = 0.06  # most that red, green and blue of a grey differ by


def darken(figure: Any) -> None:
    """Change a matplotlib figure that was written already. What lies on images and heat maps keeps its colours."""
    from matplotlib.collections import Collection
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.text import Text

    over = _over_pictures(figure)
    for artist in figure.findobj():
        if isinstance(artist, Text) and artist not in over:
            artist.set_color(shade(artist.get_color()))
            _strokes(artist)
        elif isinstance(artist, Line2D):
            for name in ("color", "markerfacecolor", "markeredgecolor"):
                getattr(artist, f"set_{name}")(shade(getattr(artist, f"get_{name}")()))
        elif isinstance(artist, Patch):
            artist.set(facecolor=shade(artist.get_facecolor()), edgecolor=shade(artist.get_edgecolor()))
        elif isinstance(artist, Collection):
            artist.set_edgecolor([shade(one) for one in artist.get_edgecolor()])
            if artist.get_array() is None:
                artist.set_facecolor([shade(one) for one in artist.get_facecolor()])


def shade(colour: Any) -> Any:
    """A colour as a dark page has it, with its opacity; `none`, and what is no grey, as it is."""
    from matplotlib.colors import to_rgba

    if isinstance(colour, str) and colour in ("none", "auto"):
        return colour
    red, green, blue, alpha = to_rgba(colour)
    if max(red, green, blue) - min(red, green, blue) > GREY:
        return colour
    light = (red + green + blue) / 3
    return (*(light * ground + (1 - light) * ink for ink, ground in zip(INK, GROUND, strict=True)), alpha)


def _over_pictures(figure: Any) -> set[Any]:
    """Texts inside axes that hold an image or a heat map: their colours were chosen for what is below them."""
    axes = (ax for ax in figure.axes if ax.images or any(c.get_array() is not None for c in ax.collections))
    return {text for ax in axes for text in ax.texts}


def _strokes(text: Any) -> None:
    """Outlines that lift a text off what it crosses."""
    from matplotlib.patheffects import withStroke

    if text.get_path_effects():
        text.set_path_effects([withStroke(linewidth=STROKE, foreground=GROUND)])
