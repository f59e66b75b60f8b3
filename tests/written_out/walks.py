"""Posterior walks for one image under a Gaussian prior, from the papers' formulas.

Each takes the solver, for its settings, and a `Dense` problem, and returns x.
"""

import math
from itertools import pairwise

import torch
from written_out.samplers import (
    ancestral,
    ddpm_levels,
    dpm_solver,
    log_uniform,
    walk_by,
)


def below(sigmas):
    """The level after each, 0 after the last."""
    return [*sigmas[1:], 0.0]


def guided(p, x, sigma, v, damped=0.0):
    """x0 + V A^T (sigma_y^2 I + A V A^T)^-1 (y - A x0) for V = sigma^2 J; the pull for `v`."""
    x0 = p.denoise(x, sigma)
    noise = max(p.sigma_y**2, damped * p.gain**2 * p.r2(sigma))
    of_y = p.a @ v @ p.a.T + noise * torch.eye(len(p.y), dtype=torch.float64)
    pull = p.jacobian(sigma).T @ p.a.T @ torch.linalg.solve(of_y, p.residual(x0))
    return x0, sigma**2 * pull


def pigdm(solver, p):
    def guide(x, sigma):
        x0, pull = guided(p, x, sigma, p.r2(sigma) * torch.eye(len(x), dtype=torch.float64))
        return p.noticed(sigma, x0 + pull)

    sigmas = p.noise_levels(solver.sampler.steps(solver.steps))
    return walk_by(solver.sampler, guide, p.start(sigmas[0]), sigmas, p.noise)


def moments(p, x, sigma):
    x0, pull = guided(p, x, sigma, sigma**2 * p.jacobian(sigma), 1e-4)
    return x0 + pull


def mmps(solver, p):
    sigmas = p.noise_levels(solver.sampler.steps(solver.steps - 2), below_noise=0.05, top=0.5)
    n = p.noise()
    mean = moments(p, p.mean, sigmas[0])
    x = mean + sigmas[0] * n
    x = x + (moments(p, x, sigmas[0]) - mean) / 2

    def guide(x, sigma):
        return p.noticed(sigma, moments(p, x, sigma))

    if solver.returns:
        return returning(solver, p, x, sigmas, guide)
    return walk_by(solver.sampler, guide, x, sigmas, p.noise)


def returning(solver, p, x, sigmas, guide):
    """Exponential Heun steps; from a level inside the window up again and down, `returns` times.

    Here x' = k x + int_0^h e^(t - h) x0(t) dt for x0 linear in t, the place in log sigma.
    """

    def step(x, x0, sigma, lower):
        h = math.log(sigma / lower)
        k = lower / sigma
        ahead = moments(p, k * x + (1 - k) * x0, lower)
        rising = 1 - (1 - k) / h  # int_0^h e^(t - h) t / h dt
        return k * x + (1 - k - rising) * x0 + rising * ahead, ahead

    low, high = (share * p.data_std for share in solver.window)
    x0 = moments(p, x, sigmas[0])
    for sigma, lower in pairwise(sigmas):
        p.noticed(sigma, x0)
        x, x0 = step(x, x0, sigma, lower)
        if low <= lower <= high:
            for _ in range(solver.returns):
                x = x + math.sqrt(sigma**2 - lower**2) * p.noise()
                x, x0 = step(x, moments(p, x, sigma), sigma, lower)
    return guide(x, sigmas[-1])


def steered(solver, p):
    s, top = p.data_std, min(p.sigma_range[1], 50 * p.data_std)
    count = round(solver.approach * solver.steps)
    last = p.noise_levels(2, below_noise=0.05)[-1]
    turn = max(last, min(6 * s, top))
    above = log_uniform(max(turn, top), turn, count + 1)

    known = None

    def steering(x, sigma):
        nonlocal known
        x0, pull, known = least_residual(p, x, sigma, 2, known)
        r2, width2 = p.r2(sigma), (p.sigma_y / p.gain) ** 2
        w = min(1, max(0, math.log(sigma / (6 * s)) / math.log(18 / 6)))
        beta = (1 + (solver.steer - 1) * r2 / (r2 + width2)) ** w
        return x0 + beta * pull

    x = p.start(above[0])
    for sigma, lower in pairwise(above):
        x = ancestral(x, p.noticed(sigma, steering(x, sigma)), sigma, lower, p.noise())

    def guide(x, sigma):
        return p.noticed(sigma, moments(p, x, sigma))

    rest = log_uniform(turn, last, solver.steps - count)
    return walk_by(solver.sampler, guide, x, rest, p.noise)


def least_residual(p, x, sigma, products, known):
    """`guided` with the system solved in the span of few products, preconditioned by V = r^2 I.

    `known` = (Z, M' Z, asked) is of the step before, M' Z orthonormal. Where asked, what it says
    of M^-1 goes first, unless the first product leaves half of the residual or more. Returns x0,
    the pull, and (Z, M Z, whether the old Z came nearer to the solution than V = r^2 I).
    """
    x0, j = p.denoise(x, sigma), p.jacobian(sigma)
    noise, eye = (
        max(p.sigma_y**2, 1e-4 * p.gain**2 * p.r2(sigma)),
        torch.eye(len(p.y), dtype=torch.float64),
    )
    system = sigma**2 * p.a @ j.T @ p.a.T + noise * eye
    near = torch.linalg.inv(p.r2(sigma) * p.a @ p.a.T + noise * eye)
    told, asked = near, False
    if known is not None:
        z, image, asked = known
        told = z @ image.T + near @ (eye - image @ image.T)
    b = p.residual(x0)
    span, residual = torch.zeros(len(b), 0, dtype=torch.float64), b
    for _ in range(products):
        step = (told if asked else near) @ residual
        span = torch.cat([span, step[:, None]], 1)
        v = span @ torch.linalg.lstsq(system @ span, b[:, None]).solution[:, 0]
        residual = b - system @ v
        asked = asked and (span.shape[1] > 1 or bool(residual.norm() < b.norm() / 2))
    image, triangle = torch.linalg.qr(system @ span)
    by_told, by_near = (torch.cosine_similarity(inverse @ b, v, dim=0) for inverse in (told, near))
    known = span @ torch.linalg.inv(triangle), image, bool(by_told > by_near)
    return x0, sigma**2 * j.T @ p.a.T @ v, known


def daps(solver, p):
    sigmas = p.noise_levels(solver.steps // solver.flow_steps)
    x = p.start(sigmas[0])
    for sigma, lower in zip(sigmas, below(sigmas), strict=True):
        x0hat = p.denoise(x, sigma)
        if solver.flow_steps > 1:
            flow = log_uniform(sigma, min(sigmas[-1], sigma), solver.flow_steps)
            x0hat = dpm_solver(p.denoise, x, flow, p.noise)
        x0 = p.noticed(sigma, conditional(p, x0hat, p.r2(sigma)))
        x = x0 + lower * p.noise()
    return x0


def conditional(p, x0hat, r2):
    """Draw N(x0hat, r^2 I) given y: a draw of both, moved by the gain times what y misses."""
    x = x0hat + math.sqrt(r2) * p.noise()
    missed = p.residual(x) + p.sigma_y * p.measured_noise()
    return x + r2 * p.a.T @ p.gram_solve(r2, p.sigma_y**2, missed)


def diffpir(solver, p):
    levels = ddpm_levels if solver.ddpm_levels else p.noise_levels
    sigmas = levels(solver.steps)
    x = p.start(sigmas[0])
    for sigma, lower in zip(sigmas, below(sigmas), strict=True):
        rho = solver.lam * p.sigma_y**2 / sigma**2
        normal = p.a.T @ p.a + rho * torch.eye(len(x), dtype=torch.float64)
        x0 = torch.linalg.solve(normal, p.a.T @ p.y + rho * p.denoise(x, sigma))
        p.noticed(sigma, x0)
        kept = math.sqrt(1 - solver.zeta) * (x - x0) / sigma
        x = x0 + lower * (kept + math.sqrt(solver.zeta) * p.noise())
    return x


def decomposed(p, smallest=0.0):
    """V, and by direction of x: s, ybar = U^T y / s and its noise; s = 0 where y says nothing."""
    u, s, vt = torch.linalg.svd(p.a)
    s = s.where(s > max(smallest, 1e-7 * float(s.max())), 0.0)
    every = torch.zeros(len(p.mean), dtype=torch.float64)
    every[: len(s)] = s
    ybar = torch.zeros_like(every)
    ybar[: len(s)] = torch.where(s > 0, (u.T @ p.y)[: len(s)] / s, 0.0)
    return vt, every, ybar, torch.where(every > 0, p.sigma_y / every, math.inf)


def ddnm(solver, p):
    levels = ddpm_levels if solver.as_published else p.noise_levels
    sigmas, (vt, s, ybar, noise) = levels(solver.steps), decomposed(p)
    x = p.start(sigmas[0])
    for sigma, lower in zip(sigmas, below(sigmas), strict=True):
        x0, n = p.denoise(x, sigma), p.noise()
        k, r2 = math.sqrt(1 - solver.eta**2) * lower / sigma, p.r2(sigma)
        g = solver.eta * lower
        if solver.as_published:
            weight = (g / ((1 - k) * noise)).clamp(max=1)
            phi = g**2 - torch.where(s > 0, (1 - k) * weight * noise, 0.0) ** 2
        else:
            weight = r2 / (r2 + noise**2)
            unknown = solver.unknown * (1 - k) ** 2 * r2 * (lower > 0)
            phi = g**2 + unknown * (1 - weight)
        x0 = p.noticed(sigma, x0 + vt.T @ (weight * (ybar - vt @ x0)))
        x = (1 - k) * x0 + k * x + vt.T @ (phi.clamp(min=0).sqrt() * (vt @ n))
    return x


def ddrm(solver, p):
    levels = ddpm_levels if solver.as_published else p.noise_levels
    sigmas, (vt, s, ybar, noise) = levels(solver.steps), decomposed(p, solver.smallest)
    xbar = vt @ p.start(sigmas[0])
    looks = ybar + (sigmas[0] ** 2 - noise**2).clamp(min=0).sqrt() * (vt @ p.noise())
    xbar = torch.where((s > 0) & (noise <= sigmas[0]), looks, xbar)
    for sigma, lower in zip(sigmas, below(sigmas), strict=True):
        x0bar, n = vt @ p.denoise(vt.T @ xbar, sigma), vt @ p.noise()
        p.noticed(sigma, vt.T @ x0bar)
        r2 = 0 if solver.as_published or lower == 0 else solver.unknown * p.r2(sigma)

        def drawn(aim, k, variance, r2=r2, n=n):
            return aim + torch.as_tensor(variance + (1 - k) ** 2 * r2).clamp(min=0).sqrt() * n

        k = math.sqrt(1 - solver.eta**2) * lower / sigma
        free = drawn(x0bar + k * (xbar - x0bar), k, (solver.eta * lower) ** 2)
        if solver.as_published:
            look = torch.where(s > 0, (ybar - x0bar) / noise, 0.0)
            passed = drawn(x0bar + k * sigma * look, k, (solver.eta * lower) ** 2)
        else:
            k = (lower / sigma) ** 2
            passed = drawn(x0bar + k * (xbar - x0bar), k, lower**2 - k**2 * sigma**2)
        k = solver.eta_b
        variance = torch.where(s > 0, lower**2 - (k * noise) ** 2, 0.0)
        towards_y = drawn(x0bar + k * (ybar - x0bar), k, variance)
        seen = torch.where(lower < noise, passed, towards_y)
        xbar = torch.where(s > 0, seen, free)
    return vt.T @ xbar


def dps(solver, p):
    sigmas = p.noise_levels(solver.steps)
    x = p.start(sigmas[0])
    for sigma, lower in zip(sigmas, below(sigmas), strict=True):
        x0 = p.noticed(sigma, p.denoise(x, sigma))
        w = p.weights(x0)
        r = w * p.residual(x0)
        u = w * r / r.norm()
        variance = p.sigma_y**2 + float((p.a.T @ u).square().sum()) * p.r2(sigma)
        length = min(float(r.norm()), 2 * math.sqrt(len(p.y) * variance))
        zeta = solver.zeta * length * (sigma**2 - lower**2) / variance
        ahead = ancestral(x, x0, sigma, lower, p.noise() if lower > 0 else 0)
        x = ahead + zeta * p.jacobian(sigma).T @ p.a.T @ u
    return x


def reddiff(solver, p):
    """Adam with betas .9 and .99 on the gradient of |y - A mu|^2 / 2 and the regulariser's."""
    sigmas = p.noise_levels(solver.steps, below_noise=1.0, below_data=0.5)
    sigmas = ddpm_levels(solver.steps) if solver.ddpm_levels else sigmas
    mu, m, v = p.mean, torch.zeros_like(p.mean), torch.zeros_like(p.mean)
    smooth, w = mu, p.weights(mu)
    for i, sigma in enumerate(sigmas):
        weight, rate = solver.lam, solver.rate * p.data_std
        if not solver.ddpm_levels:
            weight = solver.lam * max(p.sigma_y, sigmas[-1]) ** 2 / p.r2(sigma)
            rate = rate * (1 - i / solver.steps)
        x0 = p.denoise(mu + sigma * p.noise(), sigma)
        gradient = weight * (mu - x0) - p.a.T @ (w**2 * p.residual(mu))
        m, v = 0.9 * m + 0.1 * gradient, 0.99 * v + 0.01 * gradient**2
        mhat, vhat = m / (1 - 0.9 ** (i + 1)), v / (1 - 0.99 ** (i + 1))
        smooth = 0.95 * smooth + 0.05 * x0
        w = p.weights(smooth)
        mu = p.noticed(sigma, mu - rate * mhat / vhat.sqrt(), w)
    return mu


def repaint(solver, p):
    """For masks, whose rows are unit vectors: A^T y puts y in its places."""
    first, last = p.noise_levels(2)
    turn, tail = min(max(last, p.sigma_y), first), max(1, solver.steps // 5)
    count = max(1, (solver.steps - tail) // solver.repeats)
    above = log_uniform(first, turn, count + 1)
    mask = p.a.sum(0) > 0
    x = p.start(first)
    for sigma, lower in pairwise(above):
        for repeat in range(solver.repeats):
            x0 = p.denoise(x, sigma)
            ahead = ancestral(x, x0, sigma, lower, p.noise())
            y = p.a.T @ p.y + math.sqrt(max(0.0, lower**2 - p.sigma_y**2)) * p.noise()
            x = torch.where(mask, y, ahead)
            if repeat < solver.repeats - 1:
                x = x + math.sqrt(sigma**2 - lower**2) * p.noise()
        p.noticed(sigma, x0)

    def denoise(x, sigma):
        return p.noticed(sigma, p.denoise(x, sigma))

    rest = log_uniform(turn, last, tail)
    return dpm_solver(denoise, x, rest, p.noise, stochastic=True)


def denoising(solver, p):
    """For A = I: y and x_t are two looks at x0 of known noise."""

    def width(s):
        return math.sqrt(p.sigma_y**2 * s**2 / (p.sigma_y**2 + s**2))

    last = p.noise_levels(2)[-1]
    first = max(30 * width(p.data_std), last)
    sigmas = log_uniform(first, last, solver.sampler.steps(solver.steps - 1))
    mean = p.denoise(p.y, p.sigma_y)
    x = mean + math.sqrt(first**2 + width(p.data_std) ** 2) * p.noise()

    def guide(x, sigma):
        precision = 1 / sigma**2 + 1 / p.sigma_y**2
        look = (p.y / p.sigma_y**2 + x / sigma**2) / precision
        return p.noticed(sigma, p.denoise(look, math.sqrt(1 / precision)))

    return walk_by(solver.sampler, guide, x, sigmas, p.noise)


def smc(solver, p, *, uniforms, samples):
    """Particles (P, d) with the weights of the proposal and the twist, both as normal densities.

    Returns:
        x (samples, d), the effective sizes, and that of the first particles' families.
    """
    sigmas, count = p.noise_levels(solver.steps), solver.particles
    few = len(p.y) <= solver.exact_entries

    def noise():
        return p.noise().reshape(-1, len(p.mean))

    def twist(x, sigma):
        """x0, the guided mean, and log p(y | x)."""
        x0 = torch.stack([p.denoise(one, sigma) for one in x])
        noise2 = max(p.sigma_y**2, 1e-4 * p.gain**2 * p.r2(sigma))
        v = sigma**2 * p.jacobian(sigma) if few else p.r2(sigma) * torch.eye(len(p.mean)).double()
        of_y = p.a @ v @ p.a.T + noise2 * torch.eye(len(p.y), dtype=torch.float64)
        residual = p.y - x0 @ p.a.T
        pull = sigma**2 * p.jacobian(sigma) @ p.a.T @ torch.linalg.solve(of_y, residual.T)
        density = torch.distributions.MultivariateNormal(torch.zeros_like(p.y), of_y)
        return x0, x0 + pull.T, density.log_prob(residual)

    def systematic(weights, wanted):
        places, cumulative = (torch.arange(wanted) + next(uniforms)) / wanted, weights.cumsum(0)
        return torch.stack([(cumulative < place).sum().clamp(max=count - 1) for place in places])

    x = p.mean + (p.covariance.diag() + sigmas[0] ** 2).sqrt() * noise()
    x0, aim, log_psi = twist(x, sigmas[0])
    log_weights, effective, first = log_psi, [], list(range(count))
    for sigma, lower in pairwise(sigmas):
        weights = log_weights.softmax(0)
        effective.append(1 / float(weights.square().sum()))
        index = systematic(weights, count)
        if effective[-1] < count / 2:
            x, x0, aim, log_psi = x[index], x0[index], aim[index], log_psi[index]
            log_weights = torch.zeros_like(log_psi)
            first = [first[int(i)] for i in index]
        p.noticed(sigma, aim)
        ahead = ancestral(x, aim, sigma, lower, noise())
        std = ancestral(0 * x, 0 * x, sigma, lower, 1)
        step = torch.distributions.Normal(ancestral(x, x0, sigma, lower, 0), std)
        proposal = torch.distributions.Normal(ancestral(x, aim, sigma, lower, 0), std)
        ratio = (step.log_prob(ahead) - proposal.log_prob(ahead)).sum(1)
        x, before = ahead, log_psi
        x0, aim, log_psi = twist(x, lower)
        log_weights = log_weights + ratio + log_psi - before
    p.noticed(sigmas[-1], aim)
    weights = log_weights.softmax(0)
    effective.append(1 / float(weights.square().sum()))
    shares = [sum(w for w, f in zip(weights, first, strict=True) if f == one) for one in first]
    families = 1 / sum(float(w * share) for w, share in zip(weights, shares, strict=True))
    x0, r2 = x0[systematic(weights, samples)], p.r2(sigmas[-1])
    x = x0 + math.sqrt(r2) * noise()
    n = p.noise().reshape(samples, -1)[:, p.seen]
    missed = p.y - x @ p.a.T + p.sigma_y * n
    return x + r2 * p.gram_solve(r2, p.sigma_y**2, missed.T).T @ p.a, effective, families
