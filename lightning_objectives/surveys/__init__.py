"""Measures something of a network and its data, before, between or after trainings: signals -> sums over rows."""

from lightning_objectives.surveys.class_counts import ClassCounts, class_counts
from lightning_objectives.surveys.class_means import ClassMeans, class_sums
from lightning_objectives.surveys.feature_covariance import FeatureCovariance, feature_moments
from lightning_objectives.surveys.fisher import Fisher, fisher_sums
from lightning_objectives.surveys.gram_matrices import GramMatrices, gram_sums
from lightning_objectives.surveys.naive_bayes import NaiveBayesHead, naive_bayes_sums, naive_bayes_weights

__all__ = [
    "ClassCounts",
    "ClassMeans",
    "FeatureCovariance",
    "Fisher",
    "GramMatrices",
    "NaiveBayesHead",
    "class_counts",
    "class_sums",
    "feature_moments",
    "fisher_sums",
    "gram_sums",
    "naive_bayes_sums",
    "naive_bayes_weights",
]
