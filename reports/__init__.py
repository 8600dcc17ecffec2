"""Reports: figures and self-contained HTML pages, drawn from traces. Needs no torch."""

from reports.critical_figures import (
    plot_deficit_removal,
    plot_deficits,
    plot_fisher_phases,
    plot_window_sensitivity,
)
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
from reports.noise_figures import (
    plot_label_precision,
    plot_left_out_error,
    plot_memorisation,
    plot_noise_law,
    plot_prediction_shares,
    plot_ratio_estimates,
)
from reports.study_figures import plot_fall, plot_fisher_runs
from reports.timing_figures import plot_peak_fisher, plot_switch
from reports.write_report import write_report

__all__ = [
    # pages
    "write_report",
    # figures
    "plot_accuracy",
    "plot_data_map",
    "plot_deficit_removal",
    "plot_deficits",
    "plot_detection_auc",
    "plot_fall",
    "plot_fisher_phases",
    "plot_fisher_runs",
    "plot_fisher_share",
    "plot_fisher_trace",
    "plot_grad_norm",
    "plot_label_precision",
    "plot_left_out_error",
    "plot_loss",
    "plot_loss_mixture",
    "plot_memorisation",
    "plot_noise_law",
    "plot_peak_fisher",
    "plot_predicted_frac",
    "plot_prediction_shares",
    "plot_ratio_estimates",
    "plot_switch",
    "plot_weighted_gradient_share",
    "plot_window_sensitivity",
]
