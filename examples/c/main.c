/* Calls a function that packhorse compiled, from C: see export.py beside this file.
 *
 *     make && ./main ./deploy.so
 */
#include <packhorse.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define N 1000

static void die(const char *what) {
    fprintf(stderr, "%s: %s\n", what, ph_error());
    exit(1);
}

int main(int argc, char **argv) {
    static float a[N], x[N], b[N], y[N];
    static double wide[N];
    int64_t shape[] = {N};
    double worst = 0;
    int i;

    void *library = ph_open(argc > 1 ? argv[1] : "./deploy.so");
    if (!library) die("the library could not be loaded");
    ph_function scale = ph_get(library, argc > 2 ? argv[2] : NULL);
    if (!scale) die("the function was not found");

    for (i = 0; i < N; i++) {
        a[i] = 0.5f;
        x[i] = (float)i / N;
        b[i] = -0.25f;
    }
    DLTensor ta = ph_tensor(a, PH_FLOAT, 32, 1, shape), tx = ph_tensor(x, PH_FLOAT, 32, 1, shape);
    DLTensor tb = ph_tensor(b, PH_FLOAT, 32, 1, shape), ty = ph_tensor(y, PH_FLOAT, 32, 1, shape);
    DLTensor *tensors[] = {&ta, &tx, &tb, &ty};
    if (ph_call(scale, tensors, 4)) die("the call failed");

    for (i = 0; i < N; i++) {
        double off = fabs(1 / (1 + exp(-((double)a[i] * x[i] + b[i]))) - y[i]);
        if (off > worst) worst = off;
    }
    printf("y[0] = %.6f, y[999] = %.6f, largest error %s 1e-6\n", y[0], y[999],
           worst < 1e-6 ? "below" : "NOT below");

    /* A wrong call is refused, it does not crash: doubles instead of floats. */
    DLTensor wrong = ph_tensor(wide, PH_FLOAT, 64, 1, shape);
    tensors[3] = &wrong;
    if (ph_call(scale, tensors, 4) != -1) return 1;
    printf("refused: %s\n", ph_error());
    return worst < 1e-6 ? 0 : 1;
}
