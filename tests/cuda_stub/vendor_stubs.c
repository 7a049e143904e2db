/*
 * vendor_stubs.c: stand-ins of cuBLAS, cuBLASLt, cuDNN and cuRAND, one for each macro. They define the symbols
 * that ONNX Runtime's CUDA provider imports. Every call succeeds and computes nothing.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static char thing[4096];
#define SUCCEEDS(name) int name(void) { return 0; }
#define CREATES(name) int name(void **made) { *made = thing; return 0; }

#ifdef CUBLAS
CREATES(cublasCreate_v2) SUCCEEDS(cublasDestroy_v2) SUCCEEDS(cublasDgeam) SUCCEEDS(cublasDgemmBatched)
SUCCEEDS(cublasDgemmStridedBatched) SUCCEEDS(cublasDgemm_v2) SUCCEEDS(cublasDgetrfBatched)
SUCCEEDS(cublasDgetriBatched) SUCCEEDS(cublasGemmBatchedEx) SUCCEEDS(cublasGemmEx)
SUCCEEDS(cublasGemmStridedBatchedEx) SUCCEEDS(cublasGetMathMode)
const char *cublasGetStatusName(int e) { (void)e; return "stub"; }
const char *cublasGetStatusString(int e) { (void)e; return "stub"; }
SUCCEEDS(cublasScopy_v2) SUCCEEDS(cublasSetMathMode) SUCCEEDS(cublasSetStream_v2) SUCCEEDS(cublasSgeam)
SUCCEEDS(cublasSgemmBatched) SUCCEEDS(cublasSgemmStridedBatched) SUCCEEDS(cublasSgemm_v2)
SUCCEEDS(cublasSgetrfBatched) SUCCEEDS(cublasSgetriBatched) SUCCEEDS(cublasSscal_v2)
#endif

#ifdef CUBLASLT
CREATES(cublasLtCreate) SUCCEEDS(cublasLtDestroy) SUCCEEDS(cublasLtMatmul)
SUCCEEDS(cublasLtMatmulAlgoConfigSetAttribute) SUCCEEDS(cublasLtMatmulAlgoGetHeuristic)
SUCCEEDS(cublasLtMatmulAlgoInit) CREATES(cublasLtMatmulDescCreate) SUCCEEDS(cublasLtMatmulDescDestroy)
SUCCEEDS(cublasLtMatmulDescSetAttribute) CREATES(cublasLtMatmulPreferenceCreate)
SUCCEEDS(cublasLtMatmulPreferenceDestroy) SUCCEEDS(cublasLtMatmulPreferenceSetAttribute)
CREATES(cublasLtMatrixLayoutCreate) SUCCEEDS(cublasLtMatrixLayoutDestroy) SUCCEEDS(cublasLtMatrixLayoutSetAttribute)
SUCCEEDS(cublasLtMatrixTransform) CREATES(cublasLtMatrixTransformDescCreate)
SUCCEEDS(cublasLtMatrixTransformDescDestroy)
#endif

#ifdef CUDNN
SUCCEEDS(cudnnActivationForward) SUCCEEDS(cudnnAddTensor)
int cudnnBackendCreateDescriptor(int kind, void **d) { int *made = calloc(16, 8); *made = kind; *d = made; return 0; }
int cudnnBackendDestroyDescriptor(void *d) { free(d); return 0; }
SUCCEEDS(cudnnBackendExecute) SUCCEEDS(cudnnBackendFinalize)
int cudnnBackendGetAttribute(void *d, int name, int type, int64_t asked, int64_t *count, void *values) {
    (void)d;
    static const int SIZES[] = {8, 4, 4, 4, 1, 8, 4, 8, 4, 4};
    int is_result = name == 202; /* CUDNN_ATTR_ENGINEHEUR_RESULTS */
    if (count) *count = is_result ? 1 : asked < 1 ? 0 : 1;
    if (values && asked > 0 && !is_result && type != 15) memset(values, 0, type < 10 ? SIZES[type] : 4);
    return 0; }
SUCCEEDS(cudnnBackendSetAttribute) SUCCEEDS(cudnnBatchNormalizationForwardInference)
SUCCEEDS(cudnnBatchNormalizationForwardTraining) SUCCEEDS(cudnnConvolutionBiasActivationForward)
SUCCEEDS(cudnnConvolutionForward) CREATES(cudnnCreate) CREATES(cudnnCreateActivationDescriptor)
CREATES(cudnnCreateConvolutionDescriptor) CREATES(cudnnCreateDropoutDescriptor) CREATES(cudnnCreateFilterDescriptor)
CREATES(cudnnCreateLRNDescriptor) CREATES(cudnnCreatePoolingDescriptor) CREATES(cudnnCreateRNNDataDescriptor)
CREATES(cudnnCreateRNNDescriptor) CREATES(cudnnCreateReduceTensorDescriptor) CREATES(cudnnCreateTensorDescriptor)
SUCCEEDS(cudnnDeriveBNTensorDescriptor) SUCCEEDS(cudnnDestroy) SUCCEEDS(cudnnDestroyActivationDescriptor)
SUCCEEDS(cudnnDestroyConvolutionDescriptor) SUCCEEDS(cudnnDestroyDropoutDescriptor)
SUCCEEDS(cudnnDestroyFilterDescriptor) SUCCEEDS(cudnnDestroyLRNDescriptor) SUCCEEDS(cudnnDestroyPoolingDescriptor)
SUCCEEDS(cudnnDestroyRNNDataDescriptor) SUCCEEDS(cudnnDestroyRNNDescriptor)
SUCCEEDS(cudnnDestroyReduceTensorDescriptor) SUCCEEDS(cudnnDestroyTensorDescriptor)
SUCCEEDS(cudnnDropoutGetStatesSize) SUCCEEDS(cudnnFindConvolutionForwardAlgorithmEx)
SUCCEEDS(cudnnGetConvolutionForwardAlgorithm_v7)
int cudnnGetConvolutionForwardWorkspaceSize(void *h, void *x, void *w, void *c, void *y, int a, size_t *n) { (void)h,(void)x,(void)w,(void)c,(void)y,(void)a; *n = 0; return 0; }
const char *cudnnGetErrorString(int e) { (void)e; return "stub"; }
void cudnnGetLastErrorString(char *text, size_t n) { if (n) *text = 0; }
SUCCEEDS(cudnnGetRNNTempSpaceSizes) SUCCEEDS(cudnnGetRNNWeightParams)
int cudnnGetReductionIndicesSize(void *h, void *r, void *a, void *c, size_t *n) { (void)h,(void)r,(void)a,(void)c; *n = 0; return 0; }
int cudnnGetReductionWorkspaceSize(void *h, void *r, void *a, void *c, size_t *n) { (void)h,(void)r,(void)a,(void)c; *n = 0; return 0; }
SUCCEEDS(cudnnGetStream) SUCCEEDS(cudnnGetTensorNdDescriptor)
size_t cudnnGetVersion(void) { return 91400; }
SUCCEEDS(cudnnLRNCrossChannelForward) SUCCEEDS(cudnnPoolingForward) SUCCEEDS(cudnnRNNForward)
SUCCEEDS(cudnnReduceTensor) SUCCEEDS(cudnnSetActivationDescriptor) SUCCEEDS(cudnnSetConvolutionGroupCount)
SUCCEEDS(cudnnSetConvolutionMathType) SUCCEEDS(cudnnSetConvolutionNdDescriptor) SUCCEEDS(cudnnSetDropoutDescriptor)
SUCCEEDS(cudnnSetFilterNdDescriptor) SUCCEEDS(cudnnSetLRNDescriptor) SUCCEEDS(cudnnSetPoolingNdDescriptor)
SUCCEEDS(cudnnSetRNNDataDescriptor) SUCCEEDS(cudnnSetRNNDescriptor_v8) SUCCEEDS(cudnnSetReduceTensorDescriptor)
SUCCEEDS(cudnnSetStream) SUCCEEDS(cudnnSetTensorNdDescriptor) SUCCEEDS(cudnnSoftmaxForward)
#endif
