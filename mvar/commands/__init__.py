"""The commands of `mvar`, a file each: a dataclass whose fields are the arguments, with an `execute` that does it."""
