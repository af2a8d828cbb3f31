"""What is measured on a model that stays as it is: `probe`, `implicit` updates, parameter paths,
landscapes, token roles.

Start with `probe.probe`, which gives L̂ after every prefix of a trajectory.
"""
