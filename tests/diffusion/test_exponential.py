"""The weights of exponential Adams methods, against integrals in 60 digits and the methods' own formulas."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest

from fastgen.diffusion import NoiseSchedule, run, solver_table
from fastgen.diffusion.exponential import adams_weights, phi, step_orders
from fastgen.diffusion.flow_matching import FlowMatching
from fastgen.diffusion.lambdas import LambdaOptions, lambda_points

EPS = float(np.finfo(float).eps)


@pytest.mark.parametrize("z", [0.0, 1e-9, 0.3, -0.3, 1.99, -1.99, 2.01, -2.01, 7.0, -25.0])
def test_phi_to_rounding(z: float) -> None:
    """phi_k(z) = int_0^1 e^((1 - s) z) s^(k - 1) / (k - 1)! ds, by its series with 60 digits."""
    lost = 0.0
    for k in range(7):
        with mpmath.workdps(60):
            exact = mpmath.nsum(lambda j, k=k: mpmath.mpf(z) ** j / mpmath.factorial(j + k), [0, mpmath.inf])
        # Beyond 2 the recursion divides by z what rounding it takes over from the last value, and adds its own.
        lost = (lost / abs(z) if abs(z) > 2.0 else 0.0) + 4 * EPS * max(float(exact), 1 / math.factorial(k))
        assert abs(phi(k, z) - exact) <= lost, k


@pytest.mark.parametrize("rate", [1.0, -1.0, 2.0])
@pytest.mark.parametrize("step", [2e-3, 0.1, 1.0, 6.0])
def test_weights_integrate_polynomials(rate: float, step: float) -> None:
    """sum w_j u_j^k = int_0^h e^(-rate (h - u)) u^k du, however short the step, with and without the newest point."""
    rng = np.random.default_rng(0)
    log_snrs = np.cumsum(step * rng.uniform(0.6, 1.4, 6)) - 5.0
    for newest, count in ((4, 1), (4, 3), (4, 4), (5, 2), (5, 5)):
        weights = adams_weights(log_snrs, 4, newest, count, rate)
        h = log_snrs[5] - log_snrs[4]
        nodes = log_snrs[newest - np.arange(count)] - log_snrs[4]
        for k in range(count):
            with mpmath.workdps(30):
                exact = mpmath.quad(lambda u, k=k, h=h: mpmath.exp(-rate * (h - u)) * u**k, [0, h])
            terms = weights * nodes**k
            assert abs(terms.sum() - float(exact)) <= 50 * EPS * np.abs(terms).sum()


def test_steps_of_no_and_of_infinite_length() -> None:
    log_snrs = np.array([-1.0, 0.0, 0.0, math.inf])
    assert adams_weights(log_snrs, 1, 1, 2, 1.0).tolist() == [0.0, 0.0]
    assert adams_weights(log_snrs, 2, 2, 2, 2.0).tolist() == [0.5, 0.0]


def test_orders_grow_and_end() -> None:
    schedule = NoiseSchedule()
    to_zero = lambda_points(schedule, 6, LambdaOptions())
    assert step_orders(to_zero, 3).tolist() == [1, 2, 3, 3, 3, 1]
    to_least = lambda_points(schedule, 6, LambdaOptions(final_sigmas_type="sigma_min"))
    assert step_orders(to_least, 3).tolist() == [1, 2, 3, 3, 3, 3]
    assert step_orders(to_least, 1).tolist() == [1] * 6


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_in_the_form_of_its_paper(order: int) -> None:
    """x_t / alpha_t = x_s / alpha_s + sum C_j epsilon_j, C_j integrals over rho of Lagrange's polynomials in log(rho).

    Zhang & Chen 2022, by quadrature; the solver integrates in lambda.
    """
    table = solver_table("deis", NoiseSchedule(), 20, solver_order=order, final_sigmas_type="sigma_min")
    points = lambda_points(NoiseSchedule(), 20, LambdaOptions(final_sigmas_type="sigma_min"))
    i = 9
    rho = [point.level for point in points.all[i - order + 1 : i + 2]][::-1]  # the end, now, before, ...
    coefficients = []
    for j in range(1, order + 1):

        def lagrange(r: float, j: int = j) -> float:
            others = [k for k in range(1, order + 1) if k != j]
            return math.prod(math.log(r / rho[k]) / math.log(rho[j] / rho[k]) for k in others)

        coefficients.append(float(mpmath.quad(lagrange, [rho[1], rho[0]])))
    now, after = points.starts[i], points.all[i + 1]
    row = table.a[i] / after.alpha
    slots = max(order - 1, 1)
    assert row[0] * now.alpha == pytest.approx(1.0, rel=1e-13)
    assert row[2] == pytest.approx(coefficients[0], rel=1e-12)  # epsilon prediction: F
    for j in range(1, order):
        assert row[4 + (i - j) % slots] == pytest.approx(coefficients[j], rel=1e-11)


@pytest.mark.parametrize("name", ["unipc", "deis", "sa"])
def test_flow_matching_too(name: str) -> None:
    """Where x_0 and epsilon do not change along the way, every order follows the straight line exactly.

    To the rounding of x / alpha, alpha = 1 / 1000 at the first point.
    """
    table = solver_table(
        name, FlowMatching(), 7, final_sigmas_type="zero", **({"tau": 0.0} if name == "sa" else {})
    )
    x0, epsilon = np.full((1, 1), 0.3), np.full((1, 1), -1.1)
    first = table.time[0] / 1000
    x = run(table, lambda x, t: epsilon - x0, (1 - first) * x0 + first * epsilon, np.zeros((7, 1, 1)))
    assert float(abs(x - x0).max()) <= 1000 * 4 * EPS
