"""The batch system of a name in a profile. Each is imported when it is asked for, so that nobody pays for the others."""

from __future__ import annotations

from liborch.batch_systems.base import BatchSystem
from liborch.errors import UnknownName

#: As in profiles. `procedures` is none of them: it is made from a profile's own commands, see `procedures.Procedures`.
NAMES = ("slurm", "oar", "pbs", "sge", "lsf")


def named(name: str) -> BatchSystem:
    """Return the batch system of a name.

    Raises:
        UnknownName: There is none.
    """
    match name:
        case "slurm":
            from liborch.batch_systems.slurm import Slurm

            return Slurm()
        case "oar":
            from liborch.batch_systems.oar import Oar

            return Oar()
        case "pbs":
            from liborch.batch_systems.pbs import Pbs

            return Pbs()
        case "sge":
            from liborch.batch_systems.sge import Sge

            return Sge()
        case "lsf":
            from liborch.batch_systems.lsf import Lsf

            return Lsf()
    hint = "that one is made from the profile's own commands" if name == "procedures" else ""
    raise UnknownName("batch system", name, NAMES if not hint else (), hint)
