"""Chains of stages: the job file, the plan, and carrying it out."""
