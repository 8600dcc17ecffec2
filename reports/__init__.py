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
from reports.score_figures import (
    plot_importance_gain,
    plot_posterior_calibration,
    plot_score_agreement,
)
from reports.study_figures import (
    plot_fall,
    plot_fisher_runs,
)
from reports.timing_figures import (
    plot_peak_fisher,
    plot_switch,
)
from reports.weight_figures import (
    plot_effect_size,
    plot_gradient_share,
    plot_margin_angle,
    plot_predicted_first,
    plot_weight_reach,
    plot_weighting,
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
    "plot_deficit_removal",
    "plot_deficits",
    "plot_detection_auc",
    "plot_effect_size",
    "plot_fall",
    "plot_fisher_phases",
    "plot_fisher_runs",
    "plot_fisher_share",
    "plot_fisher_trace",
    "plot_grad_norm",
    "plot_gradient_share",
    "plot_imbalance_error",
    "plot_importance_gain",
    "plot_label_precision",
    "plot_left_out_error",
    "plot_loss",
    "plot_loss_mixture",
    "plot_margin_angle",
    "plot_memorisation",
    "plot_noise_law",
    "plot_peak_fisher",
    "plot_posterior_calibration",
    "plot_predicted_first",
    "plot_predicted_frac",
    "plot_prediction_shares",
    "plot_pull_share",
    "plot_ratio_estimates",
    "plot_scheme_accuracy",
    "plot_scheme_cost",
    "plot_score_agreement",
    "plot_switch",
    "plot_weight_reach",
    "plot_weighted_gradient_share",
    "plot_weighting",
    "plot_window_sensitivity",
]
