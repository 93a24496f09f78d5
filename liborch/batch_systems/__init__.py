"""Slurm, OAR, PBS, SGE, LSF and shell procedures behind one small Protocol: `base.py` is where to begin."""
