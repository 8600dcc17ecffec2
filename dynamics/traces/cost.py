"""What recording took of the time, from the scalars that a recorder with a budget writes."""

import pandas as pd


def cost_table(scalars: pd.DataFrame) -> pd.DataFrame:
    """Seconds and share of the wall time by epoch and block.

    Args:
        scalars: Table `scalars` of a run.

    Returns:
        Columns `epoch, block, seconds, wall_seconds, share`; empty where nothing was timed.
    """
    spent = scalars[scalars["name"] == "recorder_time_s"].rename(columns={"value": "seconds"})
    wall = scalars[scalars["name"] == "wall_time_s"].rename(columns={"value": "wall_seconds"})
    table = spent.merge(wall[["step", "epoch", "wall_seconds"]], on=["step", "epoch"])
    table["share"] = table["seconds"] / table["wall_seconds"]
    return table[["epoch", "block", "seconds", "wall_seconds", "share"]]
