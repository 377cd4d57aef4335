#pragma once
// Eigenvalues of a small symmetric matrix.

#include <cstddef>
#include <vector>

namespace atl {

struct Eigen {
  std::vector<double> values;   ///< [size], rising
  std::vector<double> vectors;  ///< [size, size]: row i belongs to value i, of length 1
};

/// Of `matrix` [size, size], symmetric: to tridiagonal form by Householder's reflections, then
/// implicit QL steps with Wilkinson's shift (Golub and Van Loan, Matrix Computations, 8.3). Errors
/// of the values are within some `size` roundings of the largest. Takes size^3.
Eigen eigen_of(std::vector<double> matrix, std::size_t size);

}  // namespace atl
