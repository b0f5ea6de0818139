"""Numbers that the user gives for each sample of the training set."""

from torch import Tensor


def numbers_at(index: Tensor, numbers: Tensor, *, name: str) -> Tensor:
    """Look up the numbers of the samples at these positions.

    Raises:
        ValueError: a position below 0 or beyond the numbers, on the CPU; to ask a GPU would make every step wait, so
            there it is torch's own error.

    Example:
        >>> import torch
        >>> numbers_at(torch.tensor([2, 0]), torch.tensor([0.1, 0.2, 0.3]), name="easiness")
        tensor([0.3000, 0.1000])
    """
    try:
        return numbers.index_select(0, index.long())  # An index in brackets would count -1 from the end.
    except IndexError as error:
        wrong = index[(index < 0) | (index >= len(numbers))][0]
        raise ValueError(
            f"index holds the position {int(wrong)}, but {name} has {len(numbers)} numbers: give one for each "
            "sample of the training set."
        ) from error
