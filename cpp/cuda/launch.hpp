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
  int cluster = 1;           // blocks of a cluster, neighbours in x
  bool cooperative = false;  // all blocks at once, for they wait for each other
};

template <class... Parameters, class... Arguments>
void launch(Queue queue, const Launch& shape, void (*kernel)(Parameters...), const Arguments&... arguments) {
#if defined(__CUDACC__)
  cudaLaunchAttribute attributes[2];
  int count = 0;
  if (shape.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim = {unsigned(shape.cluster), 1, 1};
    ++count;
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "cluster size");
  }
  if (shape.cooperative) {
    attributes[count].id = cudaLaunchAttributeCooperative;
    attributes[count++].val.cooperative = 1;
  }
  if (shape.shared > 48 << 10)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shape.shared)), "shared memory");
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(shape.blocks), unsigned(shape.blocks_y));
  config.blockDim = dim3(unsigned(shape.threads));
  config.dynamicSmemBytes = size_t(shape.shared);
  config.stream = static_cast<cudaStream_t>(queue.stream);
  config.attrs = attributes;
  config.numAttrs = unsigned(count);
  check(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), "launch");
#else
  const stand_in::Shape of{shape.blocks, shape.blocks_y, shape.threads, shape.shared, shape.cluster, shape.cooperative};
  stand_in::enqueue(queue.stream, [=] { stand_in::run(of, [&] { kernel(arguments...); }); });
#endif
}

}  // namespace throughtime::cuda
