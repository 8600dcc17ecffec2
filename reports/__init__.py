"""Reports: figures and self-contained HTML pages, drawn from traces. Needs no torch."""

from reports.figures import (
    plot_data_map,
    plot_detection_auc,
    plot_grad_norm,
    plot_loss,
    plot_loss_mixture,
)
from reports.network_figures import (
    plot_accuracy,
    plot_fisher_share,
    plot_fisher_trace,
    plot_predicted_frac,
    plot_weighted_gradient_share,
)
from reports.study_figures import (
    plot_fall,
    plot_fisher_runs,
    plot_label_precision,
    plot_noise_law,
)
from reports.weighting_figures import (
    plot_best_and_final,
    plot_imbalance_error,
    plot_pull_share,
    plot_scheme_accuracy,
    plot_scheme_cost,
)
from reports.write_report import write_report

__all__ = [
    # pages
    "write_report",
    # figures
    "plot_accuracy",
    "plot_best_and_final",
    "plot_data_map",
    "plot_detection_auc",
    "plot_fall",
    "plot_fisher_runs",
    "plot_fisher_share",
    "plot_fisher_trace",
    "plot_grad_norm",
    "plot_imbalance_error",
    "plot_label_precision",
    "plot_loss",
    "plot_loss_mixture",
    "plot_noise_law",
    "plot_predicted_frac",
    "plot_pull_share",
    "plot_scheme_accuracy",
    "plot_scheme_cost",
    "plot_weighted_gradient_share",
]
