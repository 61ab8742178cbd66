// Function: myadd_kernel
__kernel void myadd_kernel(__global float* restrict A, __global float* restrict B, __global float* restrict C, int n, int stride, int stride_1, int stride_2);
__kernel void myadd_kernel(__global float* restrict A, __global float* restrict B, __global float* restrict C, int n, int stride, int stride_1, int stride_2) {
  if ((convert_int(get_group_id(0))) < (n >> 6)) {
    C[((((convert_int(get_group_id(0))) * 64) + (convert_int(get_local_id(0)))) * stride)] = (A[((((convert_int(get_group_id(0))) * 64) + (convert_int(get_local_id(0)))) * stride_1)] + B[((((convert_int(get_group_id(0))) * 64) + (convert_int(get_local_id(0)))) * stride_2)]);
  } else {
    if ((((convert_int(get_group_id(0))) * 64) + (convert_int(get_local_id(0)))) < n) {
      C[((((convert_int(get_group_id(0))) * 64) + (convert_int(get_local_id(0)))) * stride)] = (A[((((convert_int(get_group_id(0))) * 64) + (convert_int(get_local_id(0)))) * stride_1)] + B[((((convert_int(get_group_id(0))) * 64) + (convert_int(get_local_id(0)))) * stride_2)]);
    }
  }
}

