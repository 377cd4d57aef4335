#include "app/plan/symmetric_eigen.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "compute/error.hpp"

namespace atl {

namespace {

/// A = Q^T T Q with T tridiagonal: `diagonal` [size], `beside` [size], its last unused; `rows` is
/// Q.
struct Tridiagonal {
  std::vector<double> diagonal, beside;
  std::vector<double> rows;
};

/// Row and column `k` of `a` get zeros beyond k + 1, by the reflection I - 2 v v^T.
void reflect(std::vector<double>& a, std::vector<double>& rows, std::size_t size, std::size_t k) {
  std::vector<double> v(size);
  double norm = 0;
  for (std::size_t i = k + 1; i < size; ++i) norm += a[k * size + i] * a[k * size + i];
  norm = std::sqrt(norm);
  if (norm == 0) return;
  for (std::size_t i = k + 1; i < size; ++i) v[i] = a[k * size + i];
  v[k + 1] += v[k + 1] < 0 ? -norm : norm;
  double length = 0;
  for (std::size_t i = k + 1; i < size; ++i) length += v[i] * v[i];
  length = std::sqrt(length);
  for (double& x : v) x /= length;
  // A - 2 v w^T - 2 w v^T with w = A v - (v^T A v) v.
  std::vector<double> w(size);
  double inner = 0;
  for (std::size_t i = k; i < size; ++i) {
    for (std::size_t j = k + 1; j < size; ++j) w[i] += a[i * size + j] * v[j];
    inner += v[i] * w[i];
  }
  for (std::size_t i = k; i < size; ++i) w[i] -= inner * v[i];
  for (std::size_t i = k; i < size; ++i) {
    for (std::size_t j = k; j < size; ++j) a[i * size + j] -= 2 * (v[i] * w[j] + w[i] * v[j]);
  }
  // Q becomes (I - 2 v v^T) Q.
  std::fill(w.begin(), w.end(), 0);
  for (std::size_t i = k + 1; i < size; ++i) {
    for (std::size_t j = 0; j < size; ++j) w[j] += v[i] * rows[i * size + j];
  }
  for (std::size_t i = k + 1; i < size; ++i) {
    for (std::size_t j = 0; j < size; ++j) rows[i * size + j] -= 2 * v[i] * w[j];
  }
}

Tridiagonal tridiagonal_of(std::vector<double> a, std::size_t size) {
  Tridiagonal t{std::vector<double>(size), std::vector<double>(size),
                std::vector<double>(size * size)};
  for (std::size_t i = 0; i < size; ++i) t.rows[i * size + i] = 1;
  for (std::size_t k = 0; k + 2 < size; ++k) reflect(a, t.rows, size, k);
  for (std::size_t i = 0; i < size; ++i) {
    t.diagonal[i] = a[i * size + i];
    if (i + 1 < size) t.beside[i] = a[i * size + i + 1];
  }
  return t;
}

/// Rows i and i + 1 of Q turned by an angle.
void turn(std::vector<double>& rows, std::size_t size, std::size_t i, double c, double s) {
  double* const upper = rows.data() + i * size;
  double* const lower = upper + size;
  for (std::size_t j = 0; j < size; ++j) {
    const double x = upper[j];
    const double y = lower[j];
    upper[j] = c * x - s * y;
    lower[j] = s * x + c * y;
  }
}

/// One implicit QL step on rows [low, high] of the tridiagonal matrix.
void ql_step(Tridiagonal& t, std::size_t size, std::size_t low, std::size_t high) {
  auto& d = t.diagonal;
  auto& e = t.beside;
  const double half = (d[low + 1] - d[low]) / (2 * e[low]);
  const double root = std::hypot(half, 1.0);
  double g = d[high] - d[low] + e[low] / (half + (half < 0 ? -root : root));
  double s = 1;
  double c = 1;
  double p = 0;
  for (std::size_t i = high; i-- > low;) {
    const double f = s * e[i];
    const double b = c * e[i];
    const double r = std::hypot(f, g);
    e[i + 1] = r;
    if (r == 0) {  // the matrix falls apart here: the rest is another step's
      d[i + 1] -= p;
      e[high] = 0;
      return;
    }
    s = f / r;
    c = g / r;
    g = d[i + 1] - p;
    const double q = (d[i] - g) * s + 2 * c * b;
    p = s * q;
    d[i + 1] = g + p;
    g = c * q - b;
    turn(t.rows, size, i, c, s);
  }
  d[low] -= p;
  e[low] = g;
  e[high] = 0;
}

}  // namespace

Eigen eigen_of(std::vector<double> matrix, std::size_t size) {
  Tridiagonal t = tridiagonal_of(std::move(matrix), size);
  constexpr int most_steps = 60;  // two or three are usual
  for (std::size_t low = 0; low < size; ++low) {
    for (int step = 0;; ++step) {
      std::size_t high = low;
      for (; high + 1 < size; ++high) {
        const double scale = std::abs(t.diagonal[high]) + std::abs(t.diagonal[high + 1]);
        if (std::abs(t.beside[high]) <= std::numeric_limits<double>::epsilon() * scale) break;
      }
      if (high == low) break;
      require(step < most_steps, "the eigenvalues of a matrix of {} rows did not converge", size);
      ql_step(t, size, low, high);
    }
  }
  std::vector<std::size_t> order(size);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return t.diagonal[a] < t.diagonal[b]; });
  Eigen eigen;
  for (const std::size_t i : order) {
    eigen.values.push_back(t.diagonal[i]);
    const auto row = t.rows.begin() + static_cast<std::ptrdiff_t>(i * size);
    eigen.vectors.insert(eigen.vectors.end(), row, row + static_cast<std::ptrdiff_t>(size));
  }
  return eigen;
}

}  // namespace atl
