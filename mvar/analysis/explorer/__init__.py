"""Attention explored with the mouse: what is shown of a run, image, layer and head; as a page and as a widget."""
