"""Whether a class keeps its contract: `mixer` runs every check on a mixer, and says in words what fails."""
