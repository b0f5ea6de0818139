"""Merges checkpoints on disk into one, and exports one of its two sets of weights."""

from lightning_objectives._files.export import export_checkpoint
from lightning_objectives._files.merge import merge_checkpoints
from lightning_objectives.merging.dare import DARE, dare_merge
from lightning_objectives.merging.della import DELLA, della_merge, magnitude_drop_rates
from lightning_objectives.merging.fisher_merging import FisherMerging, fisher_merge
from lightning_objectives.merging.frank_wolfe import FrankWolfeMerging, frank_wolfe_coefficients
from lightning_objectives.merging.greedy_soup import GreedySoup, greedy_soup_coefficients
from lightning_objectives.merging.model_breadcrumbs import ModelBreadcrumbs, breadcrumbs_merge
from lightning_objectives.merging.model_stock import ModelStock, model_stock_merge
from lightning_objectives.merging.reg_mean import RegMean, reg_mean_merge
from lightning_objectives.merging.slerp import SLERP, slerp_merge
from lightning_objectives.merging.task_arithmetic import TaskArithmetic, task_arithmetic_merge
from lightning_objectives.merging.ties import TIES, ties_merge
from lightning_objectives.merging.uniform_soup import UniformSoup, uniform_soup_coefficients
from lightning_objectives.merging.weighted_average import WeightedAverage, weighted_average_coefficients
from lightning_objectives.merging.wsm import WSM, wsm_coefficients

__all__ = [
    "DARE",
    "DELLA",
    "SLERP",
    "TIES",
    "WSM",
    "FisherMerging",
    "FrankWolfeMerging",
    "GreedySoup",
    "ModelBreadcrumbs",
    "ModelStock",
    "RegMean",
    "TaskArithmetic",
    "UniformSoup",
    "WeightedAverage",
    "breadcrumbs_merge",
    "dare_merge",
    "della_merge",
    "export_checkpoint",
    "fisher_merge",
    "frank_wolfe_coefficients",
    "greedy_soup_coefficients",
    "magnitude_drop_rates",
    "merge_checkpoints",
    "model_stock_merge",
    "reg_mean_merge",
    "slerp_merge",
    "task_arithmetic_merge",
    "ties_merge",
    "uniform_soup_coefficients",
    "weighted_average_coefficients",
    "wsm_coefficients",
]
