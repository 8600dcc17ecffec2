"""`dynamics study noise-ratio`."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from studies.commands.console import explained, fail
from studies.commands.sweep_options import (
    AddressOption,
    ConfigOption,
    DataOption,
    ExecutorChoice,
    ExecutorOption,
    OutOption,
    SeedsOption,
    WorkersOption,
    conclude,
)


class Noise(StrEnum):
    """Kinds of label noise."""

    symmetric = "symmetric"
    asymmetric = "asymmetric"
    class_dependent = "class-dependent"


class Arm(StrEnum):
    """What keeps a network from memorising."""

    plain = "plain"
    weight_decay = "weight decay"
    dropout = "dropout"


class TrueClass(StrEnum):
    """Whether a drawn label may be the true one."""

    excluded = "excluded"
    included = "included"


def noise_ratio(
    out: OutOption,
    data: DataOption = "digits",
    noise: Annotated[
        list[Noise],
        typer.Option(
            help="Kinds of noise, repeatable: symmetric (to any other class), asymmetric (to the "
            "next class), class-dependent (rates from half to one and a half times the ratio)."
        ),
    ] = [Noise.symmetric, Noise.asymmetric],  # noqa: B006 (typer's way)
    ratios: Annotated[
        str, typer.Option(help="Noise ratios, separated by commas.")
    ] = "0,0.2,0.4,0.6,0.8",
    arm: Annotated[
        list[Arm],
        typer.Option(
            help="Arms, repeatable. Plain runs memorise, and show early stopping as well; weight "
            "decay (L2 0.01) and dropout (0.5) run for 30 epochs, at ratios .2, .4 and .6."
        ),
    ] = [Arm.plain, Arm.weight_decay],  # noqa: B006 (typer's way)
    width: Annotated[
        list[int], typer.Option(help="Width of both hidden layers; repeatable.", min=1)
    ] = [1024],  # noqa: B006 (typer's way)
    true_class: Annotated[
        TrueClass,
        typer.Option(help="Whether symmetric noise may draw the true class (Arazo) or not (Chen)."),
    ] = TrueClass.excluded,
    seeds: SeedsOption = 3,
    n_images: Annotated[int, typer.Option(help="Images used; half are trained on.", min=40)] = 8000,
    quick: Annotated[
        bool, typer.Option("--quick", help="Two minutes: digits, width 256, whatever else is said.")
    ] = False,
    config: ConfigOption = None,
    until: Annotated[
        str | None,
        typer.Option(
            help="Add seeds where the standard error of the held-out accuracy is largest, until it "
            "is small enough everywhere: se<=0.01."
        ),
    ] = None,
    budget: Annotated[
        int, typer.Option(help="Runs in all, at most, where --until adds seeds.", min=1)
    ] = 100,
    executor: ExecutorOption = ExecutorChoice.serial,
    workers: WorkersOption = None,
    address: AddressOption = None,
) -> None:
    """What label noise costs a network that memorises (Chen et al., ICML 2019).

    Trains an MLP on one half of the noisy data until it is memorised, measures on the other half,
    and compares the law P(ε) with a scaled one, a free quadratic, a straight line and a monotone
    spline; beside it, the same networks stopped early or regularised. Stop it at any time: a
    second call goes on where the first one stopped.
    """
    with explained():
        from studies.lab.adaptive import parse_until
        from studies.lab.executors import open_executor
        from studies.lab.study_file import read_study_file
        from studies.noise_ratio import NoiseRatioConfig, plan_runs, run_configs

        error = None if until is None else parse_until(until)
        runs = (
            read_study_file(config, NoiseRatioConfig)
            if config
            else plan_runs(
                data="digits" if quick else data,
                noises=[kind.value for kind in noise],
                ratios=_parse_ratios(ratios),
                arms=[a.value for a in arm],
                widths=[256] if quick else width,
                true_class=true_class.value,
                seeds=seeds,
                n_images=n_images,
            )
        )
        with open_executor(executor.value, workers=workers, address=address) as where:
            result = run_configs(out, runs, executor=where, until=error, budget=budget)
        conclude(out, result, _print_table)


def _parse_ratios(text: str) -> list[float]:
    try:
        ratios = sorted({float(part) for part in text.split(",")})
    except ValueError:
        ratios = []
    if not ratios or not all(0 <= ratio < 1 for ratio in ratios):
        fail(
            "--ratios takes noise ratios from 0 to below 1, separated by commas, such as "
            f"0,0.2,0.4, but got {text!r}."
        )
    return ratios


def _print_table(study: Any) -> None:
    from dynamics.noise_table import MEASURES, noise_table

    keys = ["arm", "width", "noise", "ratio"]
    means = noise_table(study).groupby(keys, dropna=False)[MEASURES].mean()
    typer.echo(means.round(3).to_string())
