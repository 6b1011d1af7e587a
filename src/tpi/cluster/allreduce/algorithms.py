"""The algorithms that there are, by name. To add one: write its file, list it here, and its arithmetic in the suite."""

from tpi.cluster.allreduce.algorithm import Algorithm
from tpi.cluster.allreduce.mpi import Mpi
from tpi.cluster.allreduce.oneshot import OneShot
from tpi.cluster.allreduce.ring import Ring
from tpi.cluster.allreduce.star import Star
from tpi.cluster.allreduce.tree import Tree
from tpi.cluster.allreduce.twoshot import TwoShot

ALGORITHMS: dict[str, type[Algorithm]] = {entry.name: entry for entry in (Star, OneShot, TwoShot, Ring, Tree)}
"""Over the data links."""

ALL_ALGORITHMS: dict[str, type[Algorithm]] = {**ALGORITHMS, Mpi.name: Mpi}
"""Those, too, that need more than data links."""
