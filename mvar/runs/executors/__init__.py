"""How a list of runs gets made: in this process, in worker processes, by a cluster. A registry of names."""
