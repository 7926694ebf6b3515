"""Derivatives, exact solutions and measures that the tests of several simulations share."""

import numpy as np


def derivative(values, axis, cell):
    """Along an axis of a periodic box of cells of one width, by numpy's FFT in float64."""
    k = 2j * np.pi * np.fft.fftfreq(values.shape[axis], cell)
    shape = [1] * values.ndim
    shape[axis] = -1
    modes = np.fft.fft(values.astype(np.float64), axis=axis) * k.reshape(shape)
    return np.fft.ifft(modes, axis=axis).real


def rms(values):
    return np.sqrt(np.mean(np.square(values)))


def taylor_green(x, y, a, b, amplitude):
    """Exact Navier-Stokes solution on a box whose sides need not be equal: velocity and pressure."""
    velocity = np.stack([-b * np.cos(a * x) * np.sin(b * y), a * np.sin(a * x) * np.cos(b * y)], axis=-1)
    pressure = -(b**2 * np.cos(2 * a * x) + a**2 * np.cos(2 * b * y)) / 4
    return amplitude * velocity, amplitude**2 * pressure
