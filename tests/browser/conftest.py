"""The running `medloom serve` that the tests of this folder share with those of others."""

from prefectserver import first_run, medloom_server

__all__ = ["first_run", "medloom_server"]
