"""What a probe refuses to measure."""

from collections.abc import Sequence


class UnsupportedModelError(NotImplementedError):
    """The model has parts for which a probe has no exact value; the message lists all of them."""

    @classmethod
    def listing(cls, probe: str, problems: Sequence[str], remedy: str) -> "UnsupportedModelError":
        """One error for all problems of a model.

        Args:
            probe: Name of the probe that refuses.
            problems: One line for each problem, naming the layer.
            remedy: What the user can do.

        Returns:
            The error, to be raised.
        """
        listed = "\n".join(f"  - {problem}" for problem in problems)
        return cls(f"{probe} cannot give exact values for this model:\n{listed}\n{remedy}")
