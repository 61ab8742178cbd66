// Function: matmul_kernel
__kernel void matmul_kernel(__global float* restrict A, __global float* restrict B, __global float* restrict C);
__kernel void matmul_kernel(__global float* restrict A, __global float* restrict B, __global float* restrict C) {
  float C_local[1];
  __local float A_shared[64];
  __local float B_shared[64];
  C_local[0] = 0.000000e+00f;
  for (int r_outer = 0; r_outer < 5; ++r_outer) {
    barrier(CLK_LOCAL_MEM_FENCE);
    A_shared[(((convert_int(get_local_id(1))) * 8) + (convert_int(get_local_id(0))))] = A[(((((convert_int(get_group_id(1))) * 320) + ((convert_int(get_local_id(1))) * 40)) + (r_outer * 8)) + (convert_int(get_local_id(0))))];
    B_shared[(((convert_int(get_local_id(1))) * 8) + (convert_int(get_local_id(0))))] = B[((((r_outer * 256) + ((convert_int(get_local_id(1))) * 32)) + ((convert_int(get_group_id(0))) * 8)) + (convert_int(get_local_id(0))))];
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int r_inner = 0; r_inner < 8; ++r_inner) {
      C_local[0] = (C_local[0] + (A_shared[(((convert_int(get_local_id(1))) * 8) + r_inner)] * B_shared[((r_inner * 8) + (convert_int(get_local_id(0))))]));
    }
  }
  C[(((((convert_int(get_group_id(1))) * 256) + ((convert_int(get_local_id(1))) * 32)) + ((convert_int(get_group_id(0))) * 8)) + (convert_int(get_local_id(0))))] = C_local[0];
}

