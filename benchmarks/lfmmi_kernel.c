/* Yardstick of bench_lfmmi.py, not shipped: the denominator's recursions as one would write them in C.
 * Arcs grouped by (destination, pdf), alphas [state][W sequences], float32, all sequences of one length.
 * cc -O3 -march=native -ffast-math -shared -fPIC lfmmi_kernel.c -o lfmmi_kernel.so -lm */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#define W 16
typedef float row[W];

void denominator(int S, int Q, int P, int T, int B, float leak, const float *pi, const int *src, const float *weight,
                 const int *pair_first, const int *pair_dst, const int *pair_pdf, const float *pair_pi,
                 const int *dst_first, const int *out_first, const int *out_pair, const float *out_weight,
                 const float *outputs, double *logprob, float *grad) {
    row *x = aligned_alloc(64, sizeof(row) * (size_t)T * P), *alpha = aligned_alloc(64, sizeof(row) * (size_t)(T + 1) * S);
    row *total = aligned_alloc(64, sizeof(row) * (T + 1)), *beta = aligned_alloc(64, sizeof(row) * S);
    row *passed = aligned_alloc(64, sizeof(row) * Q), *share = aligned_alloc(64, sizeof(row) * P);
    for (int b0 = 0; b0 < B; b0 += W) {
        double sum[W] = {0};
        for (int s = 0; s < S; s++) for (int l = 0; l < W; l++) alpha[s][l] = pi[s];
        for (int l = 0; l < W; l++) total[0][l] = 1;
        for (int t = 0; t < T; t++) {
            row *xt = x + (size_t)t * P, *now = alpha + (size_t)t * S, *next = now + S, high, scale, jump, tot = {0};
            for (int l = 0; l < W; l++) {
                const float *o = outputs + ((size_t)(b0 + l) * T + t) * P;
                float m = o[0];
                for (int p = 1; p < P; p++) m = o[p] > m ? o[p] : m;
                high[l] = m;
            }
            for (int p = 0; p < P; p += 16)
                for (int l = 0; l < W; l++) {
                    const float *o = outputs + ((size_t)(b0 + l) * T + t) * P;
                    for (int k = p; k < p + 16 && k < P; k++) xt[k][l] = o[k] - high[l];
                }
            for (size_t i = 0; i < (size_t)P * W; i++) ((float *)xt)[i] = expf(((float *)xt)[i]);
            for (int l = 0; l < W; l++) scale[l] = 1 / total[t][l], jump[l] = leak * total[t][l];
            for (int s = 0; s < S; s++) {
                row a = {0};
                for (int q = dst_first[s]; q < dst_first[s + 1]; q++) {
                    row u;
                    for (int l = 0; l < W; l++) u[l] = jump[l] * pair_pi[q];
                    for (int k = pair_first[q]; k < pair_first[q + 1]; k++)
                        for (int l = 0; l < W; l++) u[l] += weight[k] * now[src[k]][l];
                    for (int l = 0; l < W; l++) a[l] += u[l] * xt[pair_pdf[q]][l];
                }
                for (int l = 0; l < W; l++) next[s][l] = a[l] * scale[l], tot[l] += next[s][l];
            }
            memcpy(total[t + 1], tot, sizeof tot);
            for (int l = 0; l < W; l++) sum[l] += log(total[t][l]) + high[l];
        }
        for (int l = 0; l < W; l++) logprob[b0 + l] = sum[l] + log(total[T][l] * (1 + leak));
        for (int s = 0; s < S; s++) for (int l = 0; l < W; l++) beta[s][l] = 1 / (total[T][l] * (1 + leak));
        for (int t = T - 1; t >= 0; t--) {
            row *xt = x + (size_t)t * P, *now = alpha + (size_t)t * S, scale, jump, landed = {0};
            for (int l = 0; l < W; l++) scale[l] = 1 / total[t][l], jump[l] = leak * total[t][l];
            for (int s = 0; s < S; s++) for (int l = 0; l < W; l++) landed[l] += leak * pi[s] * beta[s][l];
            memset(share, 0, sizeof(row) * P);
            for (int q = 0; q < Q; q++) {
                row u;
                for (int l = 0; l < W; l++) u[l] = jump[l] * pair_pi[q];
                for (int k = pair_first[q]; k < pair_first[q + 1]; k++)
                    for (int l = 0; l < W; l++) u[l] += weight[k] * now[src[k]][l];
                for (int l = 0; l < W; l++) {
                    float h = (beta[pair_dst[q]][l] + landed[l]) * xt[pair_pdf[q]][l] * scale[l];
                    passed[q][l] = h;
                    share[pair_pdf[q]][l] += u[l] * h;
                }
            }
            for (int s = 0; s < S; s++) {
                row a = {0};
                for (int k = out_first[s]; k < out_first[s + 1]; k++)
                    for (int l = 0; l < W; l++) a[l] += out_weight[k] * passed[out_pair[k]][l];
                memcpy(beta[s], a, sizeof a);
            }
            for (int p = 0; p < P; p += 16)
                for (int l = 0; l < W; l++) {
                    float *g = grad + ((size_t)(b0 + l) * T + t) * P;
                    for (int k = p; k < p + 16 && k < P; k++) g[k] = share[k][l];
                }
        }
    }
    free(x); free(alpha); free(total); free(beta); free(passed); free(share);
}
