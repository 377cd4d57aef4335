// Activations files that are refused; that they read back is told where they are compared.
#include "io/activation_file.hpp"

#include <gtest/gtest.h>
#include <hdf5.h>

#include "io/model_file.hpp"
#include "tests/fixtures.hpp"

namespace atl::io {
namespace {

using ActivationFile = FolderTest;

TEST_F(ActivationFile, AnotherFormatVersionIsRefused) {
  const std::string file = path("x.h5");
  ActivationLayout layout;
  layout.hidden = 2;
  layout.layers = {0};
  layout.requests = {"r"};
  layout.first_row = {0, 1};
  layout.model = "m";
  {
    ActivationWriter writer(file, layout, single_process);
    const std::vector<float> x = {1, 2};
    const std::vector<std::int32_t> token = {7};
    writer.write_tokens(0, 0, token);
    writer.write(0, 0, 0, x);
    writer.close();
  }
  EXPECT_EQ(ActivationReader(file).layout().hidden, 2);

  const hid_t id = H5Fopen(file.c_str(), H5F_ACC_RDWR, H5P_DEFAULT);
  const hid_t attribute = H5Aopen(id, "format_version", H5P_DEFAULT);
  const std::uint64_t version = 1;
  ASSERT_GE(H5Awrite(attribute, H5T_NATIVE_UINT64, &version), 0);
  H5Aclose(attribute);
  ASSERT_GE(H5Fclose(id), 0);
  EXPECT_EQ(error_of([&] { ActivationReader reader(file); }),
            "cannot read " + file +
                ": its format version is 1 and this program reads 2; write it again with "
                "--dump-activations");
}

}  // namespace
}  // namespace atl::io
