"""How much a noise level counts in the loss of a denoiser.

Every prediction is an estimate x_0 = p x + q F, so that a weight w of the error of x_0 is a weight w q^2 of the error
of the network's output F, and one rule serves all of them:

    simple          1 for F itself (Ho et al. 2020, eq. 14; Lipman et al. 2023, eq. 9). Of a score sigma^2, by which it
                    is the error of the noise that it means (Song et al. 2021, eq. 7, lambda = sigma^2)
    snr             w = SNR = alpha^2 / sigma^2, the error of the noise (Salimans & Ho 2022, section 4)
    truncated-snr   w = max(SNR, 1) (the same)
    min-snr         w = min(SNR, gamma) (Hang et al. 2023, section 3.4)
    edm             w = 1 / sigma_data^2 + SNR (Karras et al. 2022, table 1, where alpha is 1: the lambda
                    (sigma^2 + sigma_data^2) / (sigma sigma_data)^2), which is 1 for the F of EDM
"""

from __future__ import annotations

from torch import Tensor

from .levels import Levels

WEIGHTINGS = ("simple", "snr", "truncated-snr", "min-snr", "edm")


def weights(
    name: str, levels: Levels, *, prediction_type: str, gamma: float = 5.0, sigma_data: float = 0.5
) -> Tensor | None:
    """The weight of each sample's squared error of F, float64 [B]; None where all are 1.

    name: of `WEIGHTINGS`. gamma: of min-snr. sigma_data: of edm, standard deviation of the data.
    """
    if name == "simple":
        return levels.sigma**2 if prediction_type == "score" else None
    snr = levels.snr
    of_x0 = {
        "snr": snr,
        "truncated-snr": snr.clamp(min=1.0),
        "min-snr": snr.clamp(max=gamma),
        "edm": snr + sigma_data**-2,
    }[name]
    return of_x0 * levels.out**2


def weighted(error: Tensor, weight: Tensor) -> Tensor:
    """The mean over samples of weight times the mean of `error` [B, ...]; weight: [B], on any device."""
    return (weight.to(error) * error.flatten(1).mean(dim=1)).mean()
