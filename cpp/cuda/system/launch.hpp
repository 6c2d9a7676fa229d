// Launches of kernels.
#pragma once

#include "device.hpp"
#include "runtime.hpp"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#endif

namespace throughtime::cuda {

struct Launch {
  int blocks = 1, blocks_y = 1, threads = 256;
  int64_t shared = 0;        // bytes of dynamic shared memory
  int cluster = 1;           // blocks per cluster, neighbours in x
  bool cooperative = false;  // all blocks run at once, because they wait for each other
};

#if defined(__CUDACC__)
// The launch in the driver's form. It points into itself.
struct LaunchConfig {
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{};

  template <class Kernel>
  LaunchConfig(const Launch& shape, Kernel* kernel) {
    if (shape.cluster > 1) {
      auto& attribute = attributes[config.numAttrs++];
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim = {unsigned(shape.cluster), 1, 1};
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "cluster size");
    }
    if (shape.cooperative) {
      auto& attribute = attributes[config.numAttrs++];
      attribute.id = cudaLaunchAttributeCooperative;
      attribute.val.cooperative = 1;
    }
    if (shape.shared > 48 << 10) {  // the device's maximum, because another thread may launch the same kernel with more
      const int most = int(device().shared_bytes);
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most), "shared memory");
    }
    config.gridDim = dim3(unsigned(shape.blocks), unsigned(shape.blocks_y));
    config.blockDim = dim3(unsigned(shape.threads));
    config.dynamicSmemBytes = size_t(shape.shared);
    config.attrs = attributes;
  }
  LaunchConfig(const LaunchConfig&) = delete;
};
#endif

template <class... Parameters, class... Arguments>
void launch(Stream stream, const Launch& shape, void (*kernel)(Parameters...), const Arguments&... arguments) {
#if defined(__CUDACC__)
  LaunchConfig of(shape, kernel);
  of.config.stream = static_cast<cudaStream_t>(stream.handle);
  check(cudaLaunchKernelEx(&of.config, kernel, Parameters(arguments)...), "launch");
#else
  const stand_in::Shape of{shape.blocks, shape.blocks_y, shape.threads, shape.shared, shape.cluster, shape.cooperative};
  stand_in::enqueue(stream.handle, [=] { stand_in::run(of, [&] { kernel(arguments...); }); });
#endif
}

// Number of clusters of this launch that fit on the device at once; 0 if none fit or the kernel was compiled without clusters.
// ptxVersion shows the latter: it is __CUDA_ARCH__ (90 for sm_90a); binaryVersion is 90 also if the driver translated PTX of
// compute_80 for a device with clusters.
template <class Kernel>
int clusters_at_once(const Launch& shape, Kernel* kernel) {
#if defined(__CUDACC__)
  cudaFuncAttributes compiled;
  if (cudaFuncGetAttributes(&compiled, kernel) != cudaSuccess) return cudaGetLastError(), 0;
  if (compiled.ptxVersion < 90) return 0;
  LaunchConfig of(shape, kernel);
  int count = 0;
  if (cudaOccupancyMaxActiveClusters(&count, kernel, &of.config) != cudaSuccess) cudaGetLastError(), count = 0;
  return count;
#else
  (void)kernel;
  return device().multiprocessors / shape.cluster;
#endif
}

}  // namespace throughtime::cuda
