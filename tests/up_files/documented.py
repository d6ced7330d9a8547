"""The YAML blocks of UP's classification page, as they are documented there: keys, values and layout."""

from __future__ import annotations

DATASET = """\
dataset:  # Required.
  train:
    dataset: &train
      type: cls
      kwargs:
        meta_file: /path/to/train.txt  # path of the annotations
        meta_type: imagenet  # default; custom_cls for json lines
        image_reader:
          type: fs_pillow
          kwargs:
            image_dir: /path/to/images
            color_mode: RGB
            memcached: false
        transformer: [*random_resized_crop, *random_horizontal_flip, *color_jitter, *to_tensor, *normalize]
    batch_sampler:
      type: base
      kwargs:
        sampler:
          type: dist
          kwargs: {}
        batch_size: 64
    dataloader:
      type: cls_base
      kwargs:
        num_workers: 4
        pin_memory: true
  test:
    dataset: &test
      type: cls
      kwargs:
        meta_file: /path/to/val.txt
        meta_type: imagenet
        image_reader:
          type: fs_pillow
          kwargs:
            image_dir: /path/to/images
            color_mode: RGB
        transformer: [*resize, *center_crop, *to_tensor, *normalize]
        evaluator:
          type: imagenet
          kwargs:
            topk: [1, 5]
    batch_sampler:
      type: base
      kwargs:
        sampler:
          type: dist
          kwargs: {}
        batch_size: 64
    dataloader:
      type: cls_base
      kwargs:
        num_workers: 4
        pin_memory: true
"""
DOWNSTREAM = (
    DATASET.replace("meta_type: imagenet  # default; custom_cls for json lines", "meta_type: custom_cls")
    .replace("meta_type: imagenet", "meta_type: custom_cls")
    .replace(".txt", ".json")
)
MIXUP = """\
mixup: &mixup
  type: batch_mixup
  kwargs:
    alpha: 0.2
    num_classes: 1000
"""
SAMPLE_MIXUP = """\
mixup: &mixup
  type: torch_mixup
  kwargs:
    alpha: 1.0
    num_classes: 1000
    extra_input: true
"""
CUTMIX_MIXUP = """\
cutmix: &cutmix
  type: torch_cutmix_mixup
  kwargs:
    extra_input: true
    transform: true
    mixup_alpha: 0.1
    cutmix_alpha: 1.0
    num_classes: 1000
"""
RANDERASE = """\
random_erasing: &random_erasing
  type: torch_randerase
  kwargs:
    probability: 0.25
"""
RAND_AUGMENT = """\
random_augmentation: &random_augmentation
  type: torch_random_augmentationIncre
  kwargs:
    n: 2  # number of operations
    m: 7  # their magnitude
    magnitude_std: 0.5
"""
TO_KESTREL = """\
to_kestrel:
  toks_type: cls
  save_to: KESTREL
  plugin: classifier
  model_name: model
  version: 1.0.0
  pixel_means: [123.675, 116.28, 103.53]
  pixel_stds: [58.395, 57.12, 57.375]
  is_rgb: true
  save_all_label: true
  type: 'UNKNOWN'
  add_softmax: false
"""
COSINE = """\
trainer:
  max_epoch: 100
  test_freq: 10
  save_freq: 10
  optimizer:
    type: SGD
    kwargs:
      nesterov: true
      momentum: 0.9
      lr: 0.1
      weight_decay: 0.0001
  lr_scheduler:
    warmup_iter: 2500
    warmup_type: linear
    warmup_register_type: no_scale_lr
    warmup_ratio: 0.25
    type: CosineAnnealingLR
    kwargs:
      T_max: 100
      eta_min: 0.0
      warmup_iter: 2500
"""
LAMB = """\
trainer:
  max_epoch: 100
  test_freq: 10
  save_freq: 10
  only_save_latest: true
  optimizer:
    type: LAMB
    kwargs:
      lr: 0.008
      weight_decay: 0.02
  lr_scheduler:
    warmup_iter: 3130
    warmup_type: linear
    warmup_register_type: no_scale_lr
    warmup_ratio: 0.0001
    type: CosineAnnealingLR
    kwargs:
      T_max: 100
      eta_min: 1.0e-6
      warmup_iter: 3130
"""
MULTI_STEP = """\
trainer:  # Required.
  max_epoch: 100
  test_freq: 1
  save_freq: 1
  optimizer:
    type: SGD
    kwargs:
      nesterov: true
      lr: 0.1
      momentum: 0.9
      weight_decay: 0.0001
  lr_scheduler:
    warmup_iter: 2500
    warmup_type: linear
    warmup_register_type: no_scale_lr
    warmup_ratio: 0.25
    type: MultiStepLR
    kwargs:
      milestones: [30, 60, 90]
      gamma: 0.1
"""
SAVER = """\
saver:  # Required.
  save_dir: checkpoints/cls_std  # folder of the checkpoints
  results_dir: results_dir/cls_std
  auto_resume: true
  # resume_model: checkpoint.pth
  # pretrain_model: pretrain.pth
"""
BCE = """\
net:
  - name: backbone
    type: resnet18
    kwargs:
      frozen_layers: []
      out_layers: [4]
      out_strides: [32]
      normalize:
        type: solo_bn
      initializer:
        method: msra
  - name: head
    type: base_cls_head
    kwargs:
      num_classes: *num_classes
      in_plane: &in_plane 512
      input_feature_idx: -1
  - name: post_process
    type: base_cls_postprocess
    kwargs:
      cls_loss:
        type: bce
        kwargs:
          bias: true
"""
TEACHER = """\
teacher:
  - name: backbone
    type: resnet50
    kwargs:
      frozen_layers: []
      out_layers: [4]
      out_strides: [32]
      normalize:
        type: solo_bn
      initializer:
        method: msra
  - name: head
    type: base_cls_head
    kwargs:
      num_classes: *num_classes
      in_plane: 2048
      input_feature_idx: -1
"""
MIMIC = """\
mimic:
  mimic_ins_type: base
  cfgs:
    loss:
      type: kl_loss
      kwargs:
        loss_weight: 1.0
  loss_weight: 1.0
  warm_up_iters: -1
  student:
    mimic_name: ['head.classifier']
  teacher:
    mimic_name: ['head.classifier']
    teacher_weight: /path/to/teacher.pth.tar
"""
OLDER_MIMIC = """\
mimic:
  mimic_name: ['head.classifier']
  mimic_type: kl
  loss_weight: 1.0
  teacher:
    mimic_name: ['head.classifier']
    teacher_weight: /path/to/teacher.pth.tar
  student:
    mimic_name: ['head.classifier']
    student_weight: /path/to/student.pth.tar
"""
MIMIC_JOBS = """\
mimic:
  mimic_as_jobs: true
  mimic_job0:
    loss_weight: 1.0
    cfgs:
      loss:
        type: l2_loss
        kwargs:
          feat_norm: true
          loss_weight: 0.5
    student:
      mimic_name: ['head.classifier']
    teacher:
      mimic_name: ['head.classifier']
      teacher_weight: /path/to/teacher.pth.tar
"""
RUNNER = """\
runtime:
  runner:
    type: kd
"""

# As printed on the page: a quote that is never closed, a line that is no key, an indentation that is none.
OPEN_QUOTE = SAVER.replace("save_dir: checkpoints/cls_std", "save_dir: 'checkpoints/cls_std")
STRAY_LINE = MULTI_STEP.replace("      momentum: 0.9\n", "      momentum=0.9\n")
WRONG_INDENTATION = TO_KESTREL.replace("  plugin:", "   plugin:")
