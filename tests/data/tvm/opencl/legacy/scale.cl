// Function: scale_kernel_1
#ifdef cl_khr_fp64
#pragma OPENCL EXTENSION cl_khr_fp64 : enable
#elif defined(cl_amd_fp64)
#pragma OPENCL EXTENSION cl_amd_fp64 : enable
#else
#error "Double precision floating point not supported by OpenCL implementation on your device." 
#endif

__kernel void scale_kernel_1(__global float* restrict T, __global float* restrict Y, int g, int n, int stride);
__kernel void scale_kernel(__global float* restrict T, __global float* restrict X, double f, int n, int stride);
__kernel void scale_kernel_1(__global float* restrict T, __global float* restrict Y, int g, int n, int stride) {
  if ((convert_int(get_group_id(0))) < (n >> 5)) {
    Y[((((convert_int(get_group_id(0))) * 32) + (convert_int(get_local_id(0)))) * stride)] = (T[(((convert_int(get_group_id(0))) * 32) + (convert_int(get_local_id(0))))] + (convert_float(g)));
  } else {
    if ((((convert_int(get_group_id(0))) * 32) + (convert_int(get_local_id(0)))) < n) {
      Y[((((convert_int(get_group_id(0))) * 32) + (convert_int(get_local_id(0)))) * stride)] = (T[(((convert_int(get_group_id(0))) * 32) + (convert_int(get_local_id(0))))] + (convert_float(g)));
    }
  }
}

// Function: scale_kernel
#ifdef cl_khr_fp64
#pragma OPENCL EXTENSION cl_khr_fp64 : enable
#elif defined(cl_amd_fp64)
#pragma OPENCL EXTENSION cl_amd_fp64 : enable
#else
#error "Double precision floating point not supported by OpenCL implementation on your device." 
#endif

__kernel void scale_kernel_1(__global float* restrict T, __global float* restrict Y, int g, int n, int stride);
__kernel void scale_kernel(__global float* restrict T, __global float* restrict X, double f, int n, int stride);
__kernel void scale_kernel(__global float* restrict T, __global float* restrict X, double f, int n, int stride) {
  if ((convert_int(get_group_id(0))) < (n >> 5)) {
    T[(((convert_int(get_group_id(0))) * 32) + (convert_int(get_local_id(0))))] = (X[((((convert_int(get_group_id(0))) * 32) + (convert_int(get_local_id(0)))) * stride)] * (convert_float(f)));
  } else {
    if ((((convert_int(get_group_id(0))) * 32) + (convert_int(get_local_id(0)))) < n) {
      T[(((convert_int(get_group_id(0))) * 32) + (convert_int(get_local_id(0))))] = (X[((((convert_int(get_group_id(0))) * 32) + (convert_int(get_local_id(0)))) * stride)] * (convert_float(f)));
    }
  }
}

